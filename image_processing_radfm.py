"""Scans → `pixel_values`: grey values windowed to 0…1, hung as a radiologist does, resampled to what the model takes."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .scan_types_radfm import Scan, hang
from .scans_radfm import load_scan

# Low and high end in HU of the windows that CT is read with.
CT_WINDOWS = {
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "brain": (0.0, 80.0),
    "bone": (-500.0, 1300.0),
}
LUMA = (0.299, 0.587, 0.114)


class RadFMImageProcessor(ImageProcessingMixin):
    """What decides a grey value, saved with the model.

    Args:
        image_size: height and width in voxels after resampling.
        max_slices: a volume is resampled along depth to the nearest of `patch_depth`, 2 · `patch_depth`, … up to this
            many slices (paper, Methods: 4 to 64).
        patch_depth: slices a patch.
        num_channels: 3 keeps colour where a scan has it; 1 turns it into grey (ITU-R BT.601 luma). Grey stays grey.
        keep_aspect: fit a scan into the square at its own proportions, in mm where it has a spacing, with black around it;
            the published code stretches it.
        ct_window: what of a CT is seen: a name in `CT_WINDOWS` or (low, high) in HU.
        percentiles: ends of the grey scale of MR, PET, and of whatever comes without a window of its own.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 512,
        max_slices: int = 64,
        patch_depth: int = 4,
        num_channels: int = 3,
        keep_aspect: bool = False,
        ct_window: str | tuple[float, float] = "soft tissue",
        percentiles: tuple[float, float] = (0.5, 99.5),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(ct_window, str) and ct_window not in CT_WINDOWS:
            raise ValueError(f"ct_window={ct_window!r} is not one of {', '.join(CT_WINDOWS)}; or give (low, high) in HU.")
        self.image_size = image_size
        self.max_slices = max_slices
        self.patch_depth = patch_depth
        self.num_channels = num_channels
        self.keep_aspect = keep_aspect
        self.ct_window = ct_window if isinstance(ct_window, str) else (ct_window[0], ct_window[1])
        self.percentiles = tuple(percentiles)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Scans, or whatever `load_scan` reads, one or a list → `pixel_values`: a list of (C, H, W, D) float32."""
        scans = images if isinstance(images, list | tuple) else [images]
        return BatchFeature({"pixel_values": [self.prepare(scan) for scan in scans]})

    def prepare(self, source: Any) -> torch.Tensor:
        """One scan, or what `load_scan` reads → (C, image_size, image_size, D), float32 in 0…1."""
        scan = hang(load_scan(source))
        low, high = self.window(scan)
        voxels = torch.from_numpy(np.ascontiguousarray(scan.voxels))
        voxels = ((voxels - low) / max(high - low, 1e-6)).clamp(0, 1)
        if len(voxels) > self.num_channels:
            voxels = torch.einsum("c, chwd -> hwd", torch.tensor(LUMA), voxels)[None]
        return self._fit(voxels, self.size(scan))

    def window(self, scan: Scan) -> tuple[float, float]:
        """The grey values (low, high), in voxel units, that become 0 and 1."""
        if scan.modality == "CT":
            return CT_WINDOWS[self.ct_window] if isinstance(self.ct_window, str) else self.ct_window
        if scan.windows and scan.modality not in ("MR", "PT"):
            return scan.windows[0]
        low, high = np.percentile(scan.voxels, self.percentiles)
        if high <= low:
            low, high = float(scan.voxels.min()), float(scan.voxels.max())
        return float(low), float(high)

    def size(self, scan: Scan) -> tuple[int, int, int]:
        """Height, width and depth to which a hung scan is resampled, before it is padded to the square."""
        height, width, depth = scan.voxels.shape[1:]
        slices = 1
        if depth > 1:
            patches = np.ceil(depth / self.patch_depth - 0.5)
            slices = int(np.clip(patches, 1, self.max_slices // self.patch_depth)) * self.patch_depth
        if not self.keep_aspect:
            return self.image_size, self.image_size, slices
        row_mm, column_mm = (scan.spacing or (1.0, 1.0))[:2]
        extent = height * row_mm, width * column_mm
        rows, columns = (max(round(self.image_size * side / max(extent)), 1) for side in extent)
        return rows, columns, slices

    def _fit(self, voxels: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
        rows, columns, slices = size
        # Each slice in plane with antialiasing, then along depth: a thick stack is averaged, a thin one interpolated.
        planes = voxels.permute(3, 0, 1, 2)
        planes = F.interpolate(planes, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        if len(planes) != slices:
            lines = planes.permute(1, 2, 3, 0).flatten(0, 1)[None]
            lines = F.interpolate(lines, (columns, slices), mode="bilinear", antialias=True, align_corners=False)
            planes = lines[0].view(len(voxels), rows, columns, slices).permute(3, 0, 1, 2)
        above, left = (self.image_size - rows) // 2, (self.image_size - columns) // 2
        square = (left, self.image_size - columns - left, above, self.image_size - rows - above)
        return F.pad(planes, square).permute(1, 2, 3, 0).contiguous()


__all__ = ["RadFMImageProcessor"]
