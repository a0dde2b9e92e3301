"""Where the model looked, laid over the scan: the Perceiver's attention, one value a patch, on the scan's own voxels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from viewer import affine_of


def on_the_scan(attention: np.ndarray, scan: Any, image_processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Attention over patches → attention over a scan's voxels.

    Each voxel gets the value of the patch that it fell into; nothing is smoothed, so that the overlay shows no more detail
    than there is. 1 is the mean of the patches that hold a part of the scan, and 0 what the model was not shown.

    Args:
        attention: (rows, columns, depths), one value a patch.
        scan: the scan as it was read.
        image_processor: what made `pixel_values` of it.

    Returns:
        Values (height, width, depth) as float32, and the affine that they lie on: the scan's, as `affine_of` has it.
    """
    placed = replace(scan, affine=affine_of(scan), spacing=scan.spacing if scan.affine is not None else None)
    view = placed if image_processor.preset == "published" else image_processor.orient_and_crop(placed)
    view = view if scan.affine is not None else replace(view, spacing=scan.spacing)
    resampled = _size(view, image_processor)
    shown = _shown(resampled, image_processor)
    index = [
        _patch_of_voxels(n, size, to, patches)
        for n, size, to, patches in zip(view.voxels.shape[1:], resampled, shown, attention.shape, strict=True)
    ]
    inside = [np.unique(axis[axis >= 0]) for axis in index]
    mean = float(attention[np.ix_(*inside)].mean())
    values = attention[np.ix_(*[axis.clip(0) for axis in index])] / max(mean, 1e-12)
    for axis, of_axis in enumerate(index):
        values[(slice(None),) * axis + (of_axis < 0,)] = 0
    return _unhung(values.astype(np.float32), view.affine, placed), placed.affine


def write(values: np.ndarray, affine: np.ndarray, file: Path) -> None:
    """The overlay as NIfTI; its header asks viewers to show what is above the mean, faintly if it is not far above."""
    image = nibabel.Nifti1Image(values, affine)
    image.header["cal_min"], image.header["cal_max"] = 1, max(2, values.max())
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def _size(view: Any, image_processor: Any) -> tuple[int, ...]:
    """What the view was resampled to, before it was cut or padded."""
    if image_processor.preset == "published":
        side = image_processor.image_size
        return side, side, image_processor.target_depth(view.voxels.shape[-1])
    return image_processor.target_size(view)


def _shown(resampled: tuple[int, ...], image_processor: Any) -> tuple[int, ...]:
    """Height, width and depth of `pixel_values`."""
    return image_processor.image_size, image_processor.image_size, image_processor.target_depth(resampled[2])


def _patch_of_voxels(n: int, resampled: int, shown: int, patches: int) -> np.ndarray:
    """For each of `n` voxels along an axis the patch that its middle fell into; -1 where it was cut away."""
    before = (shown - resampled) // 2
    place = (np.arange(n) + 0.5) * resampled / n + before
    patch = np.floor(place * patches / shown).astype(int)
    return np.where((place < 0) | (place >= shown), -1, patch)


def _unhung(values: np.ndarray, affine: np.ndarray, scan: Any) -> np.ndarray:
    """Values on a view of a scan → values on the scan's voxels: axes swapped and flipped back, what was cut away 0."""
    to_scan = np.linalg.inv(scan.affine) @ affine
    axes = [int(np.abs(to_scan[:3, axis]).argmax()) for axis in range(3)]
    whole = np.zeros(scan.voxels.shape[1:], dtype=values.dtype)
    target = []
    for scan_axis in range(3):
        view_axis = axes.index(scan_axis)
        step = round(to_scan[scan_axis, view_axis])
        target.append(round(to_scan[scan_axis, 3]) + step * np.arange(values.shape[view_axis]))
    whole[np.ix_(*target)] = values.transpose([axes.index(scan_axis) for scan_axis in range(3)])
    return whole
