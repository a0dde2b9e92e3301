"""Scans → `pixel_values`: grey values windowed to 0…1, hung as a radiologist does, resampled to what the model takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .load_scan_radfm import load_scan
from .scan_radfm import Scan, crop_to_foreground, to_radiological_view

# Low and high end in HU of the windows that CT is read with.
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
# What is certainly not body: CT below this many HU, other scans below this share of their range.
AIR_HU, DARK = -400.0, 0.05

Window = str | tuple[float, float]


class RadFMImageProcessor(ImageProcessingMixin):
    """What decides a grey value, saved with the model.

    Args:
        image_size: height and width in voxels after resampling.
        max_slices: a volume is resampled along depth to the nearest of `patch_depth`, 2 · `patch_depth`, … up to this
            many slices (paper, Methods: 4 to 64).
        patch_depth: slices a patch.
        num_channels: 3 keeps colour where a scan has it; 1 turns it into grey. Grey stays grey.
        keep_aspect: fit a scan into the square at its own proportions, in mm where it has a spacing, with black around it;
            the published code stretches it.
        ct_window: what of a CT is seen: a name in `CT_WINDOWS`, (low, high) in HU, or three of these as the channels.
        percentiles: ends of the grey scale of MR, PET, and of whatever comes without a window of its own.
        spacing: mm from voxel to voxel along height, width and depth to resample to, instead of fitting: what is larger
            than the square is cut around the middle, what is smaller gets black around it.
        crop_to_body: cut away the air around the body first.
        preset: "radfm", or "published": every scan scaled from its lowest to its highest value (pictures from 0 to 255)
            and stretched by nearest neighbour, as the published code does it. Its random crop is a plain resize here.
    """

    model_input_names = ["pixel_values"]

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
        super().__init__(**kwargs)
        if preset not in ("radfm", "published"):
            raise ValueError(f"preset={preset!r} is neither 'radfm' nor 'published'.")
        if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
            raise ValueError(f"spacing={spacing!r} must be three lengths in mm: along height, width and depth.")
        self.image_size = image_size
        self.max_slices = max_slices
        self.patch_depth = patch_depth
        self.num_channels = num_channels
        self.keep_aspect = keep_aspect
        self.ct_window = _checked(ct_window)
        self.percentiles = tuple(percentiles)
        self.spacing = None if spacing is None else tuple(spacing)
        self.crop_to_body = crop_to_body
        self.preset = preset

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Scans, or whatever `load_scan` reads, one or a list → `pixel_values`: a list of (C, H, W, D) float32."""
        scans = images if isinstance(images, list | tuple) else [images]
        return BatchFeature({"pixel_values": [self.preprocess(scan) for scan in scans]})

    def preprocess(self, source: Any) -> torch.Tensor:
        """One scan, or what `load_scan` reads → (C, image_size, image_size, D), float32 in 0…1."""
        if self.preset == "published":
            return self._published(load_scan(source))
        scan = self.orient_and_crop(load_scan(source))
        voxels = torch.from_numpy(np.ascontiguousarray(scan.voxels))
        channels = [((voxels - low) / max(high - low, 1e-6)).clamp(0, 1) for low, high in self.intensity_windows(scan)]
        voxels = torch.cat(channels)
        if len(voxels) > self.num_channels:
            voxels = torch.einsum("c, chwd -> hwd", torch.tensor(LUMA), voxels)[None]
        return self._fit(voxels, self.target_size(scan))

    def orient_and_crop(self, scan: Scan) -> Scan:
        """What of a scan is looked at, before its greys and its size are changed: hung, and cut to the body if asked."""
        scan = to_radiological_view(scan)
        if not self.crop_to_body:
            return scan
        lowest, highest = float(scan.voxels.min()), float(scan.voxels.max())
        return crop_to_foreground(scan, AIR_HU if scan.modality == "CT" else lowest + DARK * (highest - lowest))

    def intensity_windows(self, scan: Scan) -> list[tuple[float, float]]:
        """For each channel that is made of a scan's own, the grey values (low, high) that become 0 and 1."""
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
        """The nearest multiple of the patch depth within bounds, the smaller of two that are equally near; 1 of 1."""
        if depth == 1:
            return 1
        patches = int(np.ceil(depth / self.patch_depth - 0.5))
        return min(max(patches, 1), self.max_slices // self.patch_depth) * self.patch_depth

    def target_size(self, scan: Scan) -> tuple[int, int, int]:
        """Height, width and depth to which a scan is resampled, before it is cut or padded to the square."""
        height, width, depth = scan.voxels.shape[1:]
        millimetres = scan.spacing or (1.0, 1.0, 1.0)
        if self.spacing is not None and scan.spacing is not None:
            wanted = [n * mm / to for n, mm, to in zip((height, width, depth), millimetres, self.spacing, strict=True)]
            return max(round(wanted[0]), 1), max(round(wanted[1]), 1), max(round(wanted[2]), 1) if depth > 1 else 1
        if not self.keep_aspect:
            return self.image_size, self.image_size, self.target_depth(depth)
        extent = height * millimetres[0], width * millimetres[1]
        rows, columns = (max(round(self.image_size * side / max(extent)), 1) for side in extent)
        return rows, columns, self.target_depth(depth)

    def _fit(self, voxels: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
        rows, columns, slices = size
        # Each slice in plane with antialiasing, then along depth: a thick stack is averaged, a thin one interpolated.
        planes = voxels.permute(3, 0, 1, 2)
        planes = F.interpolate(planes, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        if len(planes) != slices:
            lines = planes.permute(1, 2, 3, 0).flatten(0, 1)[None]
            lines = F.interpolate(lines, (columns, slices), mode="bilinear", antialias=True, align_corners=False)
            planes = lines[0].view(len(voxels), rows, columns, slices).permute(3, 0, 1, 2)
        depth = self.target_depth(slices)
        pads = [pad for n, to in ((columns, self.image_size), (rows, self.image_size)) for pad in _around(n, to)]
        before, after = _around(slices, depth)
        return F.pad(planes, (*pads, 0, 0, before, after)).permute(1, 2, 3, 0).contiguous()

    def _published(self, scan: Scan) -> torch.Tensor:
        voxels = torch.from_numpy(np.ascontiguousarray(scan.voxels))
        size = (self.image_size, self.image_size)
        if not scan.is_volume and scan.windows[:1] == [(0.0, 255.0)]:
            flat = F.interpolate(voxels[None, ..., 0], size, mode="bicubic", antialias=True, align_corners=False)
            return (flat / 255).clamp(0, 1)[0, ..., None]
        low, high = voxels.min(), voxels.max()
        voxels = (voxels - low) / (high - low).clamp_min(1e-6)
        return F.interpolate(voxels[None], (*size, self.target_depth(voxels.shape[-1])), mode="nearest")[0]


def _around(n: int, to: int) -> tuple[int, int]:
    """Padding before and behind that makes `n` into `to`, negative where it has to be cut."""
    before = (to - n) // 2
    return before, to - n - before


def _checked(window: Any) -> Any:
    """A window as it is kept, or a list of three."""
    if isinstance(window, str):
        if window not in CT_WINDOWS:
            raise ValueError(f"ct_window={window!r} is not one of {', '.join(CT_WINDOWS)}; or give (low, high) in HU.")
        return window
    if len(window) == 3:
        return [_checked(one) for one in window]
    if len(window) != 2 or isinstance(window[0], str) or not window[0] < window[1]:
        raise ValueError(f"ct_window={window!r} is no window: give a name, (low, high) in HU, or three of these.")
    return (float(window[0]), float(window[1]))


__all__ = ["RadFMImageProcessor"]
