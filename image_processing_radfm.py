"""Scans → `pixel_values`: grey values windowed to 0…1, oriented as a radiologist views them, resampled to the model's size.

`docs/grey-values.md` lists every step.
"""

import difflib
import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .load_scan_radfm import load_scan
from .scan_radfm import Scan, crop_to_foreground, to_radiological_view

# (low, high) in HU, that is level − width / 2 and level + width / 2. Widths and levels are those that radiology teaches
# (https://radiopaedia.org/articles/windowing-ct): soft tissue 400/40, lung 1500/−600, brain 80/40, bone 1800/400,
# mediastinum 350/50, liver 150/30, blood (subdural haematoma) 200/80.
CT_WINDOWS = {
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "brain": (0.0, 80.0),
    "bone": (-500.0, 1300.0),
    "mediastinum": (-125.0, 225.0),
    "liver": (-45.0, 105.0),
    "blood": (-20.0, 180.0),
}
# Weights of red, green and blue in grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Where the body begins for `crop_to_body`: in HU between air (−1000) and fat (−100), which also keeps most of the lung's
# tissue; in other modalities at this share of the range of grey values, above the noise of the background.
BODY_HU, BODY_SHARE = -400.0, 0.05

Window = str | tuple[float, float]


class RadFMImageProcessorKwargs(TypedDict, total=False):
    """The settings of `RadFMImageProcessor`, which documents them; `images_kwargs` of the processor takes the same names."""

    image_size: int
    max_slices: int
    patch_depth: int
    num_channels: int
    keep_aspect: bool
    ct_window: str | list | tuple  # type: ignore[type-arg] # transformers checks values against the bare types
    percentiles: list | tuple  # type: ignore[type-arg]
    spacing: list | tuple | None  # type: ignore[type-arg]
    crop_to_body: bool
    preset: str
    return_tensors: str | None


def refuse_unknown_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `TypeError` for the first name that is not known; the message names the most similar known one."""
    known = sorted(known)
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise TypeError(f"{where} has no setting {name!r}; did you mean {similar[0]!r}?")


class RadFMImageProcessor(ImageProcessingMixin):
    """Turns scans into `pixel_values`; its settings decide every grey value and are saved with the model.

    Args:
        image_size: height and width in voxels after resampling.
        max_slices: a volume is resampled along depth to the nearest of `patch_depth`, 2 · `patch_depth`, … up to this
            many slices (paper, Methods: 4 to 64).
        patch_depth: slices a patch.
        num_channels: 3 keeps colour where a scan has it; 1 turns it into grey. Grey stays grey.
        keep_aspect: fit a scan into the square with its proportions kept, measured in mm where the scan has a spacing, and
            fill the rest with black. False stretches the scan to the square, as the published code does.
        ct_window: the HU values that become 0 and 1 in a CT: a name in `CT_WINDOWS`, (low, high) in HU, or three of these,
            one for each channel.
        percentiles: the percentiles of the voxels that become 0 and 1 in MR, PET and any scan whose file has no window.
        spacing: resample to this distance in mm between voxels along height, width and depth, instead of fitting to the
            square. A result larger than the square is cropped around its centre, a smaller one is padded with black.
        crop_to_body: crop the air around the body first.
        preset: "radfm", or "published" for the grey values of the published code: every scan is scaled from its lowest to
            its highest value (pictures from 0 to 255) and stretched by nearest neighbour. Its random crop is a resize here.

    Raises:
        TypeError: an unknown setting; the message names the most similar known one.
        ValueError: a value that a setting does not take.

    Examples:
        >>> import numpy as np
        >>> processor = RadFMImageProcessor(image_size=64, ct_window="lung")
        >>> [tuple(pixels.shape) for pixels in processor([np.zeros((80, 80)), np.zeros((80, 80, 30))])["pixel_values"]]
        [(1, 64, 64, 1), (1, 64, 64, 28)]
        >>> processor(np.zeros((80, 80)), ct_windw="bone")
        Traceback (most recent call last):
        TypeError: RadFMImageProcessor has no setting 'ct_windw'; did you mean 'ct_window'?
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = RadFMImageProcessorKwargs

    def __init__(
        self,
        image_size: int = 512,
        max_slices: int = 64,
        patch_depth: int = 4,
        num_channels: int = 3,
        keep_aspect: bool = False,
        ct_window: Window | Sequence[Window] = "soft tissue",
        percentiles: tuple[float, float] = (0.5, 99.5),
        spacing: tuple[float, float, float] | None = None,
        crop_to_body: bool = False,
        preset: str = "radfm",
        **kwargs: Any,
    ):
        # transformers hands over the bookkeeping that it saved beside the settings; all else is a misspelt setting.
        bookkeeping = {name: value for name, value in kwargs.items() if name in BOOKKEEPING}
        refuse_unknown_names("RadFMImageProcessor", kwargs.keys() - bookkeeping.keys(), SETTINGS)
        super().__init__(**bookkeeping)
        if preset not in ("radfm", "published"):
            raise ValueError(f"preset={preset!r} is neither 'radfm' nor 'published'.")
        if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
            raise ValueError(f"spacing={spacing!r} must be three lengths in mm: along height, width and depth.")
        if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles={percentiles!r} must be two numbers from 0 to 100, the lower one first.")
        self.image_size = image_size
        self.max_slices = max_slices
        self.patch_depth = patch_depth
        self.num_channels = num_channels
        self.keep_aspect = keep_aspect
        self.ct_window = _validate_window(ct_window)
        self.percentiles = (percentiles[0], percentiles[1])
        self.spacing = None if spacing is None else (spacing[0], spacing[1], spacing[2])
        self.crop_to_body = crop_to_body
        self.preset = preset

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "RadFMImageProcessor":
        """An image processor with saved settings; those among `kwargs` replace the saved ones.

        Raises:
            TypeError: a name that is nearly that of a setting. Other unknown names pass, because the Auto classes hand
                their own arguments (`trust_remote_code`, `revision`, …) on to here.
        """
        refuse_misspelt_settings(kwargs)
        return super().from_dict(image_processor_dict, **kwargs)

    def __call__(self, images: Any, *, return_tensors: str | None = None, **settings: Any) -> BatchFeature:
        """Scans → `pixel_values`.

        Args:
            images: a scan, anything else that `load_scan` reads, or a list of these.
            return_tensors: accepted because every image processor of transformers takes it. `pixel_values` is a list of
                tensors in any case: scans of different sizes have no common tensor.
            settings: settings of this class for this call alone.

        Returns:
            `pixel_values`: for each scan a float32 tensor (channels, image_size, image_size, depth), values from 0 to 1.

        Raises:
            ScanError: a source that cannot be read as a scan.
            TypeError: an unknown setting.
            ValueError: a value that a setting does not take.
        """
        processor = self.with_settings(**settings) if settings else self
        scans = images if isinstance(images, list | tuple) else [images]
        return BatchFeature({"pixel_values": [processor.preprocess(scan) for scan in scans]})

    def with_settings(self, **settings: Any) -> "RadFMImageProcessor":
        """A copy with other values for some settings."""
        return type(self)(**{**{name: getattr(self, name) for name in SETTINGS}, **settings})

    def preprocess(self, source: Any) -> torch.Tensor:
        """One scan, or anything else that `load_scan` reads → (channels, image_size, image_size, depth), float32, 0…1."""
        _warn_of_channels_first(source)
        if self.preset == "published":
            return self._published(load_scan(source))
        scan = self.orient_and_crop(load_scan(source))
        voxels = torch.from_numpy(np.ascontiguousarray(scan.voxels))
        channels = [((voxels - low) / max(high - low, 1e-6)).clamp(0, 1) for low, high in self.intensity_windows(scan)]
        voxels = torch.cat(channels)
        if len(voxels) > self.num_channels:
            voxels = torch.einsum("c, chwd -> hwd", torch.tensor(LUMA), voxels)[None]
        return self._resize_and_pad(voxels, self.target_size(scan))

    def orient_and_crop(self, scan: Scan) -> Scan:
        """The scan in radiological orientation and, with `crop_to_body`, cropped to the body; grey values are unchanged."""
        scan = to_radiological_view(scan)
        if not self.crop_to_body:
            return scan
        lowest, highest = float(scan.voxels.min()), float(scan.voxels.max())
        return crop_to_foreground(scan, BODY_HU if scan.modality == "CT" else lowest + BODY_SHARE * (highest - lowest))

    def intensity_windows(self, scan: Scan) -> list[tuple[float, float]]:
        """(low, high) for each output channel, in the units of `scan.voxels`: `low` becomes 0 and `high` becomes 1.

        CT: `ct_window`, in HU. MR and PET: `percentiles`, because their windows are set by hand for one viewer and their
        units differ from machine to machine. Everything else: the first window of the file, or else `percentiles`.
        """
        if scan.modality == "CT":
            named = self.ct_window if isinstance(self.ct_window, list) else [self.ct_window]
            return [CT_WINDOWS[window] if isinstance(window, str) else window for window in named]
        if scan.windows and scan.modality not in ("MR", "PT"):
            return [scan.windows[0]]
        low, high = np.percentile(scan.voxels, self.percentiles)
        if high <= low:
            low, high = float(scan.voxels.min()), float(scan.voxels.max())
        return [(float(low), float(high))]

    def target_depth(self, depth: float) -> int:
        """The number of slices that a depth in voxels is resampled to.

        The nearest multiple of `patch_depth`, the smaller one where two are equally near, from `patch_depth` to
        `max_slices`. An image (depth 1) stays one slice.
        """
        if depth == 1:
            return 1
        patches = int(np.ceil(depth / self.patch_depth - 0.5))
        return min(max(patches, 1), self.max_slices // self.patch_depth) * self.patch_depth

    def target_size(self, scan: Scan) -> tuple[int, int, int]:
        """Height, width and depth in voxels after resampling, before the scan is cropped or padded to the square.

        With `spacing`: voxels × mm per voxel of the scan / mm per voxel of the setting, along each axis. With
        `keep_aspect`: the longer side, measured in mm, becomes `image_size` voxels. Otherwise: the square.
        """
        height, width, depth = scan.voxels.shape[1:]
        scan_mm = scan.spacing or (1.0, 1.0, 1.0)
        if self.spacing is not None and scan.spacing is not None:
            size = [
                n * mm / target_mm for n, mm, target_mm in zip((height, width, depth), scan_mm, self.spacing, strict=True)
            ]
            return max(round(size[0]), 1), max(round(size[1]), 1), max(round(size[2]), 1) if depth > 1 else 1
        if not self.keep_aspect:
            return self.image_size, self.image_size, self.target_depth(depth)
        extent_mm = height * scan_mm[0], width * scan_mm[1]
        rows, columns = (max(round(self.image_size * side / max(extent_mm)), 1) for side in extent_mm)
        return rows, columns, self.target_depth(depth)

    def _resize_and_pad(self, voxels: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
        """(C, H, W, D) → resampled to `size` in voxels → cropped or padded around the centre to the square and the depth."""
        rows, columns, slices = size
        # In plane first, slice by slice, then along depth. Antialiasing averages what becomes smaller.
        planes = voxels.permute(3, 0, 1, 2)  # (D, C, H, W)
        planes = F.interpolate(planes, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        if len(planes) != slices:
            lines = planes.permute(1, 2, 3, 0).flatten(0, 1)[None]  # (1, C · rows, columns, D)
            lines = F.interpolate(lines, (columns, slices), mode="bilinear", antialias=True, align_corners=False)
            planes = lines[0].view(len(voxels), rows, columns, slices).permute(3, 0, 1, 2)
        width, height = _center_padding(columns, self.image_size), _center_padding(rows, self.image_size)
        depth = _center_padding(slices, self.target_depth(slices))
        return F.pad(planes, (*width, *height, 0, 0, *depth)).permute(1, 2, 3, 0).contiguous()

    def _published(self, scan: Scan) -> torch.Tensor:
        """The published code's grey values and sizes, without its random crop."""
        voxels = torch.from_numpy(np.ascontiguousarray(scan.voxels))
        size = (self.image_size, self.image_size)
        if not scan.is_volume and scan.windows[:1] == [(0.0, 255.0)]:
            flat = F.interpolate(voxels[None, ..., 0], size, mode="bicubic", antialias=True, align_corners=False)
            return (flat / 255).clamp(0, 1)[0, ..., None]
        low, high = voxels.min(), voxels.max()
        voxels = (voxels - low) / (high - low).clamp_min(1e-6)
        return F.interpolate(voxels[None], (*size, self.target_depth(voxels.shape[-1])), mode="nearest")[0]


# The settings, and what transformers saves beside them in a config file.
SETTINGS = tuple(name for name in inspect.signature(RadFMImageProcessor).parameters if name != "kwargs")
BOOKKEEPING = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
# Two names that share this part of their letters are taken for one that was misspelt ("ct_windw").
MISSPELT = 0.8


def refuse_misspelt_settings(names: Iterable[str]) -> None:
    """Raise `TypeError` for a name that is nearly, but not exactly, that of a setting."""
    for name in names:
        if name not in SETTINGS and difflib.get_close_matches(name, SETTINGS, n=1, cutoff=MISSPELT):
            refuse_unknown_names("RadFMImageProcessor", [name], SETTINGS)


def _warn_of_channels_first(source: Any) -> None:
    """An array (3, H, W) may be an RGB image as torch lays it out, and is read as a volume."""
    shape = tuple(getattr(source, "shape", ()))
    if len(shape) == 3 and shape[0] == 3 and min(shape[1:]) > 4:
        warnings.warn(
            f"An array of shape {shape} is read as a volume (height, width, depth) with {shape[2]} slices. If it is an RGB "
            f"image, give it as (3, {shape[1]}, {shape[2]}, 1).",
            stacklevel=3,
        )


def _center_padding(size: int, target: int) -> tuple[int, int]:
    """The padding before and behind that makes `size` into `target`; negative values crop."""
    before = (target - size) // 2
    return before, target - size - before


def _validate_window(window: Any) -> Any:
    """A window name, (low, high) in HU as floats, or a list of three of these. Raises `ValueError` for anything else."""
    if isinstance(window, str):
        if window not in CT_WINDOWS:
            raise ValueError(f"ct_window={window!r} is not one of {', '.join(CT_WINDOWS)}; or give (low, high) in HU.")
        return window
    if len(window) == 3:
        return [_validate_window(part) for part in window]
    if len(window) != 2 or isinstance(window[0], str) or not window[0] < window[1]:
        raise ValueError(f"ct_window={window!r} is no window: give a name, (low, high) in HU, or three of these.")
    return (float(window[0]), float(window[1]))


# Saving copies this file and what it imports, so that the folder loads with `trust_remote_code=True` alone.
RadFMImageProcessor.register_for_auto_class()

__all__ = ["RadFMImageProcessor"]
