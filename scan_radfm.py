"""What a scan is once it is read: `Scan`, the options and the context of reading one, and `ScanError`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .affine_radfm import PLANES, closest_axes, opposite_letters, orientation_letters, reorient

# What describes a modality to a reader; DICOM's own code (PS3.3 C.7.3.1.1.1) where it is not in the table.
MODALITY_NAMES = {
    "MR": "MRI", "DX": "X-ray", "CR": "X-ray", "MG": "mammogram", "US": "ultrasound", "PT": "PET",
    "NM": "nuclear medicine",
}  # fmt: skip
UNITS = {"CT": " HU"}


class ScanError(ValueError):
    """A file, folder or array that is no scan: one line that names it, the reason and, where there is one, the remedy."""


@dataclass(frozen=True)
class ReadOptions:
    """The keyword arguments of `load_scan`, which documents them."""

    series: str | int | None = None
    volume: int | Mapping[str, object] | None = None
    allow_missing: bool = False
    max_bytes: int = 2 << 30


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
        return ScanError(one_line(f"{self.name}: {reason}"))

    def require_bytes(self, size: float, what: str) -> None:
        """Raise a `ScanError` where `size` bytes are more than `max_bytes` allows; `what` is what would take them."""
        limit = self.options.max_bytes
        if size > limit:
            raise self.error(f"{what} needs {gigabytes(size)}, more than {gigabytes(limit)} (max_bytes).")

    def volume_index(self, count: int) -> int:
        """The chosen one of `count` volumes that have numbers and no names, the first where none is chosen."""
        volume = self.options.volume
        if volume is None:
            return 0
        if isinstance(volume, Mapping):
            raise self.error(f"its volumes have no names, so volume has to be a number from 0 to {count - 1}.")
        if not 0 <= volume < count and count == 1:
            raise self.error(f"holds one volume, and no volume {volume}.")
        if not 0 <= volume < count:
            raise self.error(f"has volumes 0 to {count - 1}, and no volume {volume}.")
        return int(volume)


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
        windows: the grey windows in the file as (low, high) in voxel units, in the file's order.
        warnings: what a reader should know: what was left out, guessed or repaired.

    >>> scan = Scan(np.zeros((1, 64, 64, 20), np.float32), np.diag([-3.0, -3.0, 5.0, 1.0]), (3.0, 3.0, 5.0), "CT")
    >>> scan
    Scan(CT, 1×64×64×20, 3×3×5 mm)
    >>> scan.is_volume, scan.plane(), scan.orientation_letters()
    (True, 'axial', ('L', 'P', 'S'))
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
        return bool(self.voxels.shape[-1] > 1)

    def orientation_letters(self) -> tuple[str, str, str] | None:
        """Where rows, columns and slices run to in the patient, such as ("P", "L", "S"); None without an affine.

        An axis that is oblique by more than 20° has a letter for each patient axis that it runs along, such as "PI".
        """
        return None if self.affine is None else orientation_letters(np.asarray(self.affine))

    def edge_letters(self) -> dict[str, str]:
        """The letters at the edges of its slices: {"top", "bottom", "left", "right"}; empty without an affine.

        >>> Scan(np.zeros((1, 8, 8, 1), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0])).edge_letters()
        {'top': 'R', 'bottom': 'L', 'left': 'A', 'right': 'P'}
        """
        letters = self.orientation_letters()
        if letters is None:
            return {}
        down, right, _ = letters
        return {"top": opposite_letters(down), "bottom": down, "left": opposite_letters(right), "right": right}

    def plane(self) -> str | None:
        """The plane in which the slices lie: "axial", "coronal" or "sagittal", the closest one; None without an affine."""
        return None if self.affine is None else PLANES[closest_axes(np.asarray(self.affine))[2]]

    def describe(self) -> list[tuple[str, str]]:
        """Label and value of all that may be shown of a scan, in the order in which to show it; nothing about the patient.

        >>> for label, value in Scan(np.ones((1, 4, 6, 1), np.float32), spacing=(0.2, 0.2, 1.0)).describe():
        ...     print(f"{label}: {value}")
        Modality: not stated
        Size: 4 × 6 pixels
        Spacing: 0.2 × 0.2 mm
        Extent: 0.8 × 1.2 mm
        Values: 1 to 1
        """
        shape = self.voxels.shape[1:] if self.is_volume else self.voxels.shape[1:3]
        lines = [("Modality", MODALITY_NAMES.get(self.modality or "", self.modality or "not stated"))]
        if self.series:
            lines.append(("Series", self.series))
        colour = ", colour" if self.voxels.shape[0] == 3 else ""
        lines.append(("Size", f"{_times(shape, '')} {'voxels' if self.is_volume else 'pixels'}{colour}"))
        if self.spacing is not None:
            lines.append(("Spacing", f"{_times(self.spacing[: len(shape)], '.4g')} mm"))
            extent = [n * mm for n, mm in zip(shape, self.spacing, strict=False)]
            lines.append(("Extent", f"{_times(extent, '.0f' if max(extent) >= 10 else '.2g')} mm"))
        letters = self.orientation_letters()
        if letters is not None:
            slices = f", slices to {letters[2]}" if self.is_volume else ""
            lines.append(("Axes", f"rows run to {letters[0]}, columns to {letters[1]}{slices}"))
        lines.append(("Values", f"{self.voxels.min():g} to {self.voxels.max():g}{UNITS.get(self.modality or '', '')}"))
        for low, high in self.windows:
            lines.append(("Window", f"{low:g} to {high:g} (centre {(low + high) / 2:g}, width {high - low:g})"))
        return lines + [("Warning", warning) for warning in self.warnings]

    def __repr__(self) -> str:
        mm = "unknown" if self.spacing is None else "×".join(f"{s:.3g}" for s in self.spacing) + " mm"
        return f"Scan({self.modality or 'unknown modality'}, {'×'.join(map(str, self.voxels.shape))}, {mm})"


def _times(values: Sequence[float], form: str) -> str:
    return " × ".join(format(value, form) for value in values)


# How radiologists look at each plane, seen from the patient's feet, front or left (DICOM PS3.17 and PS3.3 C.7.6.1.1.1 name
# the letters; that the patient's right is on the image's left is convention). For the rows, columns and slices of an image
# in the plane perpendicular to a patient axis (0: R, 1: A, 2: S): the patient axis, and the direction along it.
RADIOLOGICAL_VIEW = {
    0: ((2, -1), (1, -1), (0, 1)),  # sagittal: rows to the feet, columns to the back, slices to the right
    1: ((2, -1), (0, -1), (1, 1)),  # coronal: rows to the feet, columns to the left, slices to the front
    2: ((1, -1), (0, -1), (2, 1)),  # axial: rows to the back, columns to the left, slices to the head
}
RAS = ((0, 1), (1, 1), (2, 1))
# No header of NIfTI says along which axis the slices were acquired. Pixels of one slice are square or nearly so, so one
# spacing that is a fifth wider than both others is that of the slices. Both ratios are our choice: no standard has a rule.
WIDEST_SPACING_RATIO = 1.2
# With isotropic voxels, a stack of clearly fewer slices than rows and columns shows its axis: 0.7 keeps a head (256 × 256 ×
# 192, ratio 0.75, any axis) out and takes a slab.
FEWEST_VOXELS_RATIO = 0.7


def to_radiological_view(scan: Scan) -> Scan:
    """The same scan with rows, columns and slices as a radiologist looks at them; unchanged where it has no affine.

    Slices run along the axis of acquisition: the one with clearly the widest spacing, or else clearly the fewest voxels,
    or else from feet to head. Axes are swapped and flipped, never resampled.

    >>> scan = Scan(np.zeros((1, 20, 64, 48), np.float32), np.diag([5.0, 3.0, 3.0, 1.0]), (5.0, 3.0, 3.0))
    >>> to_radiological_view(scan).orientation_letters()
    ('I', 'P', 'R')
    """
    if scan.affine is None or scan.spacing is None:
        return scan
    patient_axes = closest_axes(scan.affine)
    return _reoriented(scan, RADIOLOGICAL_VIEW[patient_axes[_acquisition_axis(scan)] if scan.is_volume else patient_axes[2]])


def to_ras(scan: Scan) -> Scan:
    """The same scan with its axes to the patient's right, front and head. Raises `ScanError` where it has no affine.

    >>> to_ras(Scan(np.zeros((1, 4, 5, 6)), np.diag([-1.0, -1.0, 2.0, 1.0]), (1.0, 1.0, 2.0))).orientation_letters()
    ('R', 'A', 'S')
    """
    if scan.affine is None or scan.spacing is None:
        raise ScanError("A scan without an affine has no patient axes.")
    return _reoriented(scan, RAS)


def _reoriented(scan: Scan, directions: Sequence[tuple[int, int]]) -> Scan:
    assert scan.affine is not None and scan.spacing is not None
    voxels, affine, order = reorient(scan.voxels, scan.affine, directions)
    spacing = (scan.spacing[order[0]], scan.spacing[order[1]], scan.spacing[order[2]])
    return replace(scan, voxels=voxels, affine=affine, spacing=spacing, warnings=list(scan.warnings))


def _acquisition_axis(scan: Scan) -> int:
    assert scan.affine is not None and scan.spacing is not None
    by_spacing = sorted(range(3), key=scan.spacing.__getitem__)
    if scan.spacing[by_spacing[2]] > WIDEST_SPACING_RATIO * scan.spacing[by_spacing[1]]:
        return by_spacing[2]
    by_count = sorted(range(3), key=lambda axis: scan.voxels.shape[axis + 1])
    if scan.voxels.shape[by_count[0] + 1] < FEWEST_VOXELS_RATIO * scan.voxels.shape[by_count[1] + 1]:
        return by_count[0]
    return closest_axes(scan.affine).index(2)


def crop_to_foreground(scan: Scan, threshold: float) -> Scan:
    """The smallest box that holds all voxels above a grey value, its affine moved along; the whole scan where none is.

    >>> voxels = np.zeros((1, 5, 5, 5), np.float32)
    >>> voxels[0, 2, 3, 1:4] = 7
    >>> cropped = crop_to_foreground(Scan(voxels, np.eye(4)), 0)
    >>> cropped.voxels.shape, cropped.affine[:3, 3].tolist()
    ((1, 1, 1, 3), [2.0, 3.0, 1.0])
    """
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


def replace_nonfinite(scan: Scan, name: str) -> Scan:
    """The scan with NaN and infinity replaced by its lowest finite value, and a warning that says how many there were."""
    good = np.isfinite(scan.voxels)
    if good.all():
        return scan
    if not good.any():
        raise ScanError(one_line(f"{name}: has no finite grey value."))
    lowest = scan.voxels.min(where=good, initial=np.inf)
    np.logical_not(good, out=good)
    scan.warnings.append(f"{int(good.sum())} voxels without a finite value were set to {lowest:g}, the lowest.")
    if not scan.voxels.flags.writeable:
        scan.voxels = scan.voxels.copy()
    scan.voxels[good] = lowest
    return scan


def gigabytes(size: float) -> str:
    """A number of bytes as people read it.

    >>> gigabytes(2_147_483_648), gigabytes(1.08e14), gigabytes(1_048_576)
    ('2.15 GB', '108000 GB', '0.00105 GB')
    """
    return f"{size / 1e9:.0f} GB" if size >= 1e12 else f"{size / 1e9:.3g} GB"


def one_line(text: str) -> str:
    """Text that fits in one line whatever a file's name or an error put into it."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
