"""Where the model looked: the Perceiver's attention on the patch grid, placed in the patient's coordinates."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

# Each patch is written as so many voxels along each axis: viewers interpolate between voxels, which then blurs the edges of
# patches alone and makes up no detail between their middles.
REPEAT = 6


def place_on_patches(attention: np.ndarray, view: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Attention over patches → values and affine of the grid on which they lie.

    1 is the mean of the patches that hold a part of the scan. Patches of padding alone are left out.

    Args:
        attention: (rows, columns, depths), one value a patch.
        view: `prepare.model_view` of the scan.

    Returns:
        Values (rows, columns, depths) · `REPEAT` as float32, and their affine (4, 4): index → mm in RAS+.
    """
    scale, offset, kept = [], [], []
    sizes = zip(view["shape"], view["resampled"], view["shown"], attention.shape, strict=True)
    for voxels, resampled, shown, patches in sizes:
        before = (shown - resampled) // 2
        patch = shown / patches
        edges = np.arange(patches + 1) * patch - before
        inside = np.flatnonzero((edges[1:] > 0) & (edges[:-1] < resampled))
        kept.append(inside)
        # A voxel's index counts from its middle, an edge from the border of the first voxel: hence the halves.
        step = patch / REPEAT * voxels / resampled
        scale.append(step)
        offset.append(edges[inside[0]] * voxels / resampled + step / 2 - 0.5)
    values = attention[np.ix_(*kept)].astype(np.float32)
    values /= max(float(values.mean()), 1e-12)
    for axis in range(3):
        values = values.repeat(REPEAT, axis)
    to_view = np.diag([*scale, 1.0])
    to_view[:3, 3] = offset
    return values, np.asarray(view["affine"]) @ to_view


def write(values: np.ndarray, affine: np.ndarray, file: Path) -> None:
    """The overlay as NIfTI; its header asks viewers to show what is above the mean, faintly if it is not far above."""
    image = nibabel.Nifti1Image(values, affine)
    image.header["cal_min"], image.header["cal_max"] = 1, max(2, values.max())
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)
