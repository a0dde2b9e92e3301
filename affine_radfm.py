"""Affines and axes: which way the voxel axes of a scan run through the patient, and how to reorder and flip them.

An affine is a (4, 4) matrix that takes a voxel index (i, j, k, 1) to patient coordinates in mm. The coordinates are RAS+, as
in NIfTI: x grows to the patient's right, y to the front (anterior), z to the head (superior). DICOM and ITK use LPS+.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

# Multiply from the left: LPS+ (DICOM PS3.3 C.7.6.2.1.1, ITK) → RAS+ and back, for x and y change their sign in both cases.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The letters at the negative and at the positive end of each axis of RAS+.
AXIS_LETTERS = ("LR", "PA", "IS")
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "I": "S", "S": "I"}
# The plane through the patient that is perpendicular to each axis of RAS+.
PLANES = ("sagittal", "coronal", "axial")
# An axis that leaves its closest patient axis by more than 20° gets a second letter, as DICOM's Patient Orientation does
# (PS3.3 C.7.6.1.1.1, which leaves the angle to the writer); within 20° one letter reads better.
OBLIQUE_SINE = float(np.sin(np.radians(20)))
# Columns shorter than this (mm) have no direction.
SHORTEST_MM = 1e-9


def spacing_from_affine(affine: np.ndarray) -> tuple[float, float, float]:
    """The mm from voxel to voxel along each of the three voxel axes.

    >>> spacing_from_affine(np.diag([-0.5, 0.5, 3.0, 1.0]))
    (0.5, 0.5, 3.0)
    """
    rows, columns, slices = np.linalg.norm(affine[:3, :3], axis=0)
    return float(rows), float(columns), float(slices)


def direction_cosines(affine: np.ndarray) -> np.ndarray:
    """(3, 3): the unit vector of each voxel axis in patient coordinates, as columns."""
    columns = np.asarray(affine, dtype=float)[:3, :3]
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0), SHORTEST_MM))


def closest_axes(affine: np.ndarray) -> tuple[int, int, int]:
    """For each voxel axis the patient axis (0: R, 1: A, 2: S) that it runs along most, each patient axis taken once.

    Of the six ways to assign the axes the one with the largest sum of cosines is taken, so spacing has no influence.

    >>> closest_axes(np.array([[0, -2.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]]))
    (1, 0, 2)
    """
    cosines = np.abs(direction_cosines(affine))
    rows, columns, slices = max(
        permutations((0, 1, 2)), key=lambda axes: float(sum(cosines[axis, i] for i, axis in enumerate(axes)))
    )
    return rows, columns, slices


def orientation_letters(affine: np.ndarray) -> tuple[str, str, str]:
    """Where each voxel axis runs to: R, L, A, P, S or I; two or three letters, the main one first, for an oblique axis.

    >>> orientation_letters(np.diag([-1.0, 1.0, 2.0, 1.0]))
    ('L', 'A', 'S')
    """
    cosines = direction_cosines(affine)
    rows, columns, slices = (_letters(cosines[:, i], axis) for i, axis in enumerate(closest_axes(affine)))
    return rows, columns, slices


def _letters(cosines: np.ndarray, main: int) -> str:
    by_strength = sorted(range(3), key=lambda axis: (axis != main, -abs(cosines[axis])))
    named = [axis for axis in by_strength if axis == main or abs(cosines[axis]) > OBLIQUE_SINE]
    return "".join(AXIS_LETTERS[axis][int(cosines[axis] > 0)] for axis in named)


def opposite_letters(letters: str) -> str:
    """The letters of the other end of an axis.

    >>> opposite_letters("PI")
    'AS'
    """
    return "".join(OPPOSITE[letter] for letter in letters)


def reorient(
    voxels: np.ndarray, affine: np.ndarray, directions: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Swap and flip voxel axes until each runs in a wanted direction; nothing is resampled or copied.

    Args:
        voxels: (channels, height, width, depth).
        affine: (4, 4), of those voxels.
        directions: for each voxel axis of the result the patient axis (0: R, 1: A, 2: S), and 1 to run with it or -1 to run
            against it. Each patient axis stands there once.

    Returns:
        A view of the voxels, the affine under which every voxel keeps its patient coordinates, and for each axis of the
        result its number in `voxels`.

    >>> voxels, affine, order = reorient(np.zeros((1, 4, 5, 6)), np.diag([-1.0, 1.0, 2.0, 1.0]), [(2, 1), (1, 1), (0, 1)])
    >>> voxels.shape, order, orientation_letters(affine)
    ((1, 6, 5, 4), (2, 1, 0), ('S', 'A', 'R'))
    """
    patient_axes = closest_axes(affine)
    first, second, third = (patient_axes.index(axis) for axis, _ in directions)
    order = (first, second, third)
    voxels = voxels.transpose(0, *(axis + 1 for axis in order))
    affine = np.asarray(affine, dtype=float)[:, [*order, 3]]
    for i, (axis, direction) in enumerate(directions):
        if affine[axis, i] * direction < 0:
            affine[:3, 3] += affine[:3, i] * (voxels.shape[i + 1] - 1)
            affine[:3, i] *= -1
            voxels = np.flip(voxels, i + 1)
    return voxels, affine, order


def is_affine(affine: np.ndarray) -> bool:
    """Whether a matrix can place voxels: finite, and no voxel axis is zero or lies in the plane of the two others."""
    return bool(np.isfinite(affine).all()) and abs(float(np.linalg.det(direction_cosines(affine)))) > SINGULAR


# The volume of the parallelepiped of three unit vectors. 1e-4 is two axes 0.006° apart: rounding, and no scanner.
SINGULAR = 1e-4
