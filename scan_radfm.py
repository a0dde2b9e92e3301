"""What a scan is once it is read: `Scan`, and `ScanError` for what cannot be read."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


class ScanError(ValueError):
    """A file, folder or array that is no scan: one line that names it, the reason and, where there is one, the remedy."""


@dataclass(frozen=True)
class ReadOptions:
    """The keyword arguments of `load_scan`, which documents them."""

    series: str | int | None
    volume: int | dict[str, object] | None
    allow_missing: bool
    max_bytes: int


@dataclass
class ReadContext:
    """What every reader needs besides the bytes.

    Args:
        name: the source as error messages name it: a path, or "the array" where there is none.
        options: the keyword arguments of `load_scan`.
        warnings: collected while reading; they end up in `Scan.warnings`.
    """

    name: str
    options: ReadOptions
    warnings: list[str] = field(default_factory=list)

    def error(self, reason: str) -> ScanError:
        """A `ScanError` whose one line starts with the name of the source."""
        return ScanError(f"{self.name}: {reason}")


@dataclass(eq=False)
class Scan:
    """One image or volume in the units in which it was recorded.

    Args:
        voxels: (channels, height, width, depth) float32: HU for CT, raw for MR, 0 to 255 for pictures. One channel is
            grey, three are RGB; depth 1 is an image.
        affine: (4, 4), voxel index (row, column, slice, 1) → patient coordinates in mm, RAS+ as in NIfTI. None where
            the source says nothing of it.
        spacing: mm from voxel to voxel along height, width, depth; None where the source says nothing of it.
        modality: DICOM's code (PS3.3 C.7.3.1.1.1): "CT", "MR", "DX", "US", …; None where unknown.
        series: number and description of the series, without a word about the patient.
        windows: the file's own grey windows as (low, high) in voxel units, in the file's order.
        warnings: what a reader should know: what was left out, guessed or repaired.
    """

    voxels: np.ndarray
    affine: np.ndarray | None = None
    spacing: tuple[float, float, float] | None = None
    modality: str | None = None
    series: str | None = None
    windows: Sequence[tuple[float, float]] = ()
    warnings: list[str] = field(default_factory=list)

    @property
    def is_volume(self) -> bool:
        """Whether there is more than one slice."""
        return self.voxels.shape[-1] > 1

    def __repr__(self) -> str:
        mm = "unknown" if self.spacing is None else "×".join(f"{s:.3g}" for s in self.spacing) + " mm"
        return f"Scan({self.modality or 'unknown modality'}, {'×'.join(map(str, self.voxels.shape))}, {mm})"


# Where an image's rows and columns point in each plane, so that it looks as a radiologist hangs it (DICOM PS3.3
# C.7.6.1.1.1; the patient's right on the picture's left): axis of RAS, and direction along it.
HANGING = {
    0: ((2, -1), (1, -1), (0, 1)),  # sagittal: rows to the feet, columns to the back, slices to the right
    1: ((2, -1), (0, -1), (1, 1)),  # coronal: rows to the feet, columns to the left, slices to the front
    2: ((1, -1), (0, -1), (2, 1)),  # axial: rows to the back, columns to the left, slices to the head
}


def to_radiological_view(scan: Scan) -> Scan:
    """The same scan with rows, columns and slices as a radiologist hangs them; unchanged where it has no affine.

    Slices run along the axis of acquisition: the one with clearly the widest spacing, or else clearly the fewest voxels,
    or else from feet to head. Axes are swapped and flipped, never resampled.
    """
    if scan.affine is None or scan.spacing is None:
        return scan
    directions = scan.affine[:3, :3] / np.maximum(np.linalg.norm(scan.affine[:3, :3], axis=0), 1e-12)
    patient_axes = _closest_axes(directions)
    depth = _acquisition_axis(scan, patient_axes) if scan.is_volume else 2
    order, flips = [], []
    for patient_axis, direction in HANGING[patient_axes[depth]]:
        axis = patient_axes.index(patient_axis)
        order.append(axis)
        flips.append(np.sign(directions[patient_axis, axis] or 1) != direction)
    voxels = scan.voxels.transpose(0, *(axis + 1 for axis in order))
    affine = scan.affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis + 1] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis + 1)
    spacing = (scan.spacing[order[0]], scan.spacing[order[1]], scan.spacing[order[2]])
    return replace(scan, voxels=voxels, affine=affine, spacing=spacing, warnings=list(scan.warnings))


def to_ras(scan: Scan) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Voxels (channels, R, A, S) of a scan with an affine, each axis running to its letter, and their spacing in mm."""
    if scan.affine is None or scan.spacing is None:
        raise ScanError("A scan without an affine has no patient axes.")
    patient_axes = _closest_axes(scan.affine[:3, :3])
    order = [patient_axes.index(axis) for axis in range(3)]
    voxels = scan.voxels.transpose(0, *(axis + 1 for axis in order))
    flips = [i + 1 for i, axis in enumerate(order) if scan.affine[i, axis] < 0]
    return np.flip(voxels, tuple(flips)), (scan.spacing[order[0]], scan.spacing[order[1]], scan.spacing[order[2]])


def crop_to_foreground(scan: Scan, threshold: float) -> Scan:
    """The smallest box that holds all voxels above a grey value, and where it lies; all of the scan where none is."""
    body = np.asarray(np.any(scan.voxels > threshold, axis=0))
    box = [slice(None)]
    corner = np.zeros(3)
    for axis in range(3):
        inside = np.flatnonzero(np.moveaxis(body, axis, 0).reshape(body.shape[axis], -1).any(axis=1))
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (0, body.shape[axis])
        box.append(slice(first, last))
        corner[axis] = first
    affine = scan.affine
    if affine is not None:
        affine = affine.copy()
        affine[:3, 3] += affine[:3, :3] @ corner
    return replace(scan, voxels=scan.voxels[tuple(box)], affine=affine, warnings=list(scan.warnings))


def _acquisition_axis(scan: Scan, patient_axes: list[int]) -> int:
    spacing = scan.spacing or (1.0, 1.0, 1.0)
    by_spacing = sorted(range(3), key=spacing.__getitem__)
    if spacing[by_spacing[2]] > 1.2 * spacing[by_spacing[1]]:
        return by_spacing[2]
    by_count = sorted(range(3), key=lambda axis: scan.voxels.shape[axis + 1])
    if scan.voxels.shape[by_count[0] + 1] < 0.7 * scan.voxels.shape[by_count[1] + 1]:
        return by_count[0]
    return patient_axes.index(2)


def _closest_axes(directions: np.ndarray) -> list[int]:
    """For each voxel axis the patient axis (0 R, 1 A, 2 S) that it runs along most, each taken once."""
    axes, strength = [-1, -1, -1], np.abs(directions).copy()
    for _ in range(3):
        patient_axis, voxel_axis = np.unravel_index(int(np.argmax(strength)), (3, 3))
        axes[int(voxel_axis)] = int(patient_axis)
        strength[patient_axis, :] = strength[:, voxel_axis] = -1
    return axes


def replace_nonfinite(scan: Scan, name: str) -> Scan:
    """The scan with NaN and infinity replaced by its lowest finite value, and a warning that says how many there were."""
    good = np.isfinite(scan.voxels)
    if good.all():
        return scan
    if not good.any():
        raise ScanError(f"{name}: has no finite grey value.")
    lowest = scan.voxels[good].min()
    scan.warnings.append(f"{int((~good).sum())} voxels without a finite value were set to {lowest:g}, the lowest.")
    scan.voxels = np.where(good, scan.voxels, lowest)
    return scan


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
