"""Scans as the browser shows them: NIfTI for NiiVue, PNG slices without WebGL2, thumbnails and windows.

In the Space everything here runs in the child process that reads scans (`reader_child.py`). The benchmark's pages draw their
slices with it too (`radbench/`), so this module imports nothing else of the Space.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

# A volume with more voxels than this is thinned out in plane for the browser: 512 × 512 × 380 is sent whole.
FULL_VOXELS = 100_000_000
# What is sent first: a second on a slow line.
COARSE_VOXELS = 2_000_000
SLICES, SLICE_PIXELS, THUMBNAIL_PIXELS = 96, 512, 96
# A window that shows more than this share of the middle slice as pure white or black is no window to open with.
CLIPPED_SHARE = 0.9
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def affine_of(scan: Any) -> np.ndarray:
    """The affine of a scan (4, 4), mm in RAS+; without one, an affine that shows rows downwards and columns to the right."""
    if scan.affine is not None:
        return np.asarray(scan.affine, dtype=float)
    rows, columns, slices = scan.spacing or (1.0, 1.0, 1.0)
    return np.array([[0, -columns, 0, 0], [-rows, 0, 0, 0], [0, 0, slices, 0], [0, 0, 0, 1.0]])


def write_nifti(scan: Any, file: Path, max_voxels: int) -> bool:
    """Write a scan as NIfTI with at most `max_voxels` voxels in the smallest exact type; whether all voxels are in it.

    Slices are kept and every n-th row and column is taken. Where that alone would leave less than 64 rows, slices are
    thinned out as well.
    """
    steps = [1, 1, 1]
    while np.prod([-(-n // step) for n, step in zip(scan.voxels.shape[1:], steps, strict=True)]) > max_voxels:
        in_plane = min(scan.voxels.shape[1], scan.voxels.shape[2]) // steps[0]
        if in_plane > 64 or scan.voxels.shape[3] // steps[2] < 2:
            steps[0] = steps[1] = steps[0] + 1
        else:
            steps[2] += 1
    voxels = scan.voxels[:, :: steps[0], :: steps[1], :: steps[2]]
    affine = affine_of(scan) @ np.diag([*steps, 1.0])
    if len(voxels) == 3:
        data = np.ascontiguousarray(np.moveaxis(voxels, 0, -1).clip(0, 255).astype(np.uint8)).view(RGB)[..., 0]
    else:
        data = compact(voxels[0])
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)
    return steps == [1, 1, 1]


def compact(voxels: np.ndarray) -> np.ndarray:
    """The same grey values as int16 where they are whole numbers that fit, else as float32."""
    if voxels.dtype == np.int16:
        return voxels
    low, high = float(voxels.min()), float(voxels.max())
    # Slice by slice: comparing a whole volume at once would need its size again several times.
    whole = low >= -32768 and high <= 32767 and all(bool((s == np.rint(s)).all()) for s in np.moveaxis(voxels, -1, 0))
    return np.asarray(voxels, dtype=np.int16 if whole else np.float32)


def windows(scan: Any, ct_windows: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Grey windows to choose from as {"name", "low", "high"}; the first is the one to open with.

    `ct_windows` are those of the image processor, name → low and high end in HU. CT opens with the window in the file, or
    with the first of them. MR and PET open with the percentiles 0.5 and 99.5: their files
    often have one window a slice, which fits no other slice. Others open with the window in the file. A window that shows
    the middle slice all white or all black is never the first. Colour has no window.
    """
    if len(scan.voxels) == 3:
        return []
    lowest, highest = float(scan.voxels.min()), float(scan.voxels.max())
    in_file = [(f"From file{f' {i + 1}' if i else ''}", *window) for i, window in enumerate(scan.windows[:3])]
    # Two million voxels tell the percentiles as well as all of them, in a hundredth of the time.
    step = max(round((scan.voxels.size / 2_000_000) ** (1 / 3)), 1)
    low, high = np.percentile(scan.voxels[:, ::step, ::step, ::step], (0.5, 99.5))
    automatic = [("Automatic", float(low), float(high))] if high > low else []
    if scan.modality == "CT":
        named = in_file + [(name.capitalize(), *window) for name, window in ct_windows.items()]
    elif scan.modality in ("MR", "PT"):
        named = automatic + in_file
    else:
        named = in_file + automatic
    named.append(("Full range", lowest, highest if highest > lowest else lowest + 1))
    middle = scan.voxels[0, :, :, scan.voxels.shape[-1] // 2]
    good = [window for window in named if window[2] > window[1] and _is_visible(middle, window[1], window[2])]
    first = (good or named[-1:])[0]
    return [{"name": n, "low": lo, "high": hi} for n, lo, hi in [first, *(w for w in named if w != first)]]


def _is_visible(image: np.ndarray, low: float, high: float) -> bool:
    return max(float((image >= high).mean()), float((image <= low).mean())) < CLIPPED_SHARE


def _grey(slice_: np.ndarray, low: float, high: float) -> Image.Image:
    """A slice (channels, rows, columns) as an 8-bit image."""
    grey = (np.clip((slice_ - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(grey[0] if len(grey) == 1 else np.ascontiguousarray(np.moveaxis(grey, 0, -1)))


def _drawn_size(scan: Any, pixels: int) -> tuple[int, int]:
    """Width and height of a slice at its true proportions, the longer side of `pixels`."""
    _, height, width, _ = scan.voxels.shape
    mm = scan.spacing or (1.0, 1.0, 1.0)
    scale = pixels / max(height * mm[0], width * mm[1])
    return max(round(width * mm[1] * scale), 1), max(round(height * mm[0] * scale), 1)


def draw_slices(scan: Any, window: tuple[float, float], folder: Path) -> list[Path]:
    """PNGs of at most `SLICES` evenly chosen slices of a scan in radiological view."""
    folder.mkdir(exist_ok=True)
    depth = scan.voxels.shape[-1]
    files = []
    for index in np.unique(np.linspace(0, depth - 1, min(depth, SLICES)).round().astype(int)):
        files.append(folder / f"{index:04d}.png")
        draw_slice(scan, int(index), window, SLICE_PIXELS).save(files[-1])
    return files


def draw_slice(scan: Any, index: int, window: tuple[float, float], pixels: int) -> Image.Image:
    """One slice of a scan in radiological view at its true proportions, its longer side of `pixels`."""
    image = _grey(scan.voxels[..., index].astype(np.float32), *window)
    return image.resize(_drawn_size(scan, pixels), Image.Resampling.BILINEAR)


def draw_thumbnail(scan: Any, window: tuple[float, float], file: Path) -> None:
    """The middle slice of a scan in radiological view on a black square."""
    image = draw_slice(scan, scan.voxels.shape[-1] // 2, window, THUMBNAIL_PIXELS)
    square = Image.new("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    left, top = ((THUMBNAIL_PIXELS - side) // 2 for side in image.size)
    square.paste(image, (left, top))
    square.save(file)
