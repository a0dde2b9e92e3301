"""Axes and affines: reordering and flipping never moves a voxel in the patient; `Scan` describes itself; examples run."""

import doctest
from importlib import import_module
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfm.affine_radfm import (
    LPS_TO_RAS,
    closest_axes,
    is_affine,
    opposite_letters,
    orientation_letters,
    reorient,
    spacing_from_affine,
)
from radfm.scan_radfm import Scan, ScanError, crop_to_foreground, to_radiological_view, to_ras

ROOT = Path(__file__).parents[2]
ANGLES = st.floats(-np.pi, np.pi)
# Rotations that keep each axis closest to one patient axis.
SMALL_ANGLES = st.floats(-0.35, 0.35)
SPACINGS = st.tuples(*[st.floats(0.2, 8.0)] * 3)
DIRECTIONS = [
    list(zip(axes, signs, strict=True)) for axes in permutations((0, 1, 2)) for signs in product((-1, 1), repeat=3)
]


def rotation(x, y, z):
    return np.asarray(nibabel.eulerangles.euler2mat(z, y, x))


@st.composite
def scans(draw, angles=ANGLES):
    """A small scan at any angle with any spacing, mirrored or not; each voxel holds a number of its own."""
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    spacing = draw(SPACINGS)
    mirror = np.diag(draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3)))
    order = list(draw(st.permutations((0, 1, 2))))
    affine = np.eye(4)
    affine[:3, :3] = rotation(draw(angles), draw(angles), draw(angles)) @ mirror[:, order] * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return Scan(voxels, affine, spacing)


def places(voxels, affine):
    """Patient coordinates of each voxel in the order of the voxels' numbers."""
    index = np.stack(np.unravel_index(np.argsort(voxels[0], axis=None), voxels.shape[1:]))
    return (affine[:3, :3] @ index + affine[:3, 3:]).T


@given(scans(), st.sampled_from(DIRECTIONS))
def test_a_voxel_stays_at_its_patient_coordinate_in_every_order_and_direction(scan, directions):
    voxels, affine, order = reorient(scan.voxels, scan.affine, directions)
    np.testing.assert_allclose(places(voxels, affine), places(scan.voxels, scan.affine), atol=1e-6)
    np.testing.assert_allclose(spacing_from_affine(affine), [scan.spacing[axis] for axis in order], rtol=1e-9)
    assert list(closest_axes(affine)) == [axis for axis, _ in directions]


@given(scans(), st.sampled_from([to_ras, to_radiological_view]))
def test_views_move_no_voxel_and_keep_the_scan(scan, view):
    before, affine = scan.voxels.copy(), scan.affine.copy()
    seen = view(scan)
    np.testing.assert_allclose(places(seen.voxels, seen.affine), places(scan.voxels, scan.affine), atol=1e-6)
    np.testing.assert_allclose(spacing_from_affine(seen.affine), seen.spacing, rtol=1e-9)
    assert np.array_equal(scan.voxels, before) and np.array_equal(scan.affine, affine)


@given(scans(SMALL_ANGLES), st.sampled_from(DIRECTIONS))
def test_a_view_is_the_same_however_the_scan_is_stored(scan, directions):
    """Up to 20° of turn about each axis; beyond 45° two ways to store one scan may be equally close to the patient axes."""
    voxels, affine, order = reorient(scan.voxels, scan.affine, directions)
    stored = Scan(voxels, affine, tuple(scan.spacing[axis] for axis in order))
    one, other = to_ras(scan), to_ras(stored)
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-9)


@given(scans(), SPACINGS)
def test_closest_axes_know_nothing_of_spacing_and_take_each_axis_once(scan, spacing):
    axes = closest_axes(scan.affine)
    assert sorted(axes) == [0, 1, 2]
    stretched = scan.affine.copy()
    stretched[:3, :3] = stretched[:3, :3] / scan.spacing * spacing
    cosines = np.abs(scan.affine[:3, :3] / scan.spacing)
    best = sorted(sum(cosines[axis, i] for i, axis in enumerate(order)) for order in permutations((0, 1, 2)))
    assert sum(cosines[axis, i] for i, axis in enumerate(axes)) == pytest.approx(best[-1])
    if best[-1] - best[-2] > 1e-9:  # no two assignments are equally good
        assert closest_axes(stretched) == axes


@given(scans(SMALL_ANGLES))
def test_letters_are_those_of_nibabel_near_the_patient_axes(scan):
    letters = orientation_letters(scan.affine)
    assert tuple(word[0] for word in letters) == nibabel.aff2axcodes(scan.affine)
    flipped = scan.affine @ np.diag([-1.0, -1.0, -1.0, 1.0])
    assert orientation_letters(flipped) == tuple(map(opposite_letters, letters))


def test_an_oblique_axis_has_a_letter_for_each_patient_axis_that_it_runs_along():
    straight, tilted = np.eye(4), np.eye(4)
    straight[:3, :3] = rotation(np.radians(19), 0, 0)
    tilted[:3, :3] = rotation(np.radians(21), 0, 0)
    assert orientation_letters(straight) == ("R", "A", "S")
    assert orientation_letters(tilted) == ("R", "AS", "SP")


def test_lps_is_ras_with_two_axes_turned():
    np.testing.assert_array_equal(LPS_TO_RAS @ [1, 2, 3, 1], [-1, -2, 3, 1])
    np.testing.assert_array_equal(LPS_TO_RAS @ LPS_TO_RAS, np.eye(4))


def test_what_places_no_voxel_is_no_affine():
    flat, nothing = np.eye(4), np.eye(4)
    flat[:3, 2] = flat[:3, 0]
    nothing[:3, 1] = 0
    assert is_affine(np.diag([1e-4, 1e-4, 1e-4, 1.0])) and is_affine(np.eye(4))
    assert not is_affine(flat) and not is_affine(nothing) and not is_affine(np.eye(4) * np.nan)


@pytest.mark.parametrize(
    ("spacing", "shape", "plane"),
    [
        ((1.0, 1.0, 3.0), (20, 20, 20), "axial"),
        ((1.0, 3.0, 1.0), (20, 20, 20), "coronal"),
        ((3.0, 1.0, 1.0), (20, 20, 20), "sagittal"),
        ((1.0, 1.1, 1.0), (20, 20, 20), "axial"),  # not clearly wider: from feet to head
        ((1.0, 1.0, 1.0), (10, 20, 20), "sagittal"),
        ((1.0, 1.0, 1.0), (15, 20, 20), "axial"),  # not clearly fewer
        ((1.0, 3.0, 1.0), (5, 20, 20), "coronal"),  # spacing comes before the number of slices
    ],
)
def test_slices_run_along_the_axis_of_acquisition(spacing, shape, plane):
    scan = Scan(np.zeros((1, *shape), np.float32), np.diag([*spacing, 1.0]), spacing)
    assert to_radiological_view(scan).plane() == plane


def test_letters_at_the_edges_are_those_of_a_radiological_view():
    views = {}
    for plane, spacing in (("axial", (1, 1, 3)), ("coronal", (1, 3, 1)), ("sagittal", (3, 1, 1))):
        scan = to_radiological_view(Scan(np.zeros((1, 9, 9, 9), np.float32), np.diag([*spacing, 1.0]), spacing))
        views[plane] = "".join(scan.edge_letters().values())  # top, bottom, left, right
    assert views == {"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}


def test_a_scan_without_an_affine_has_no_axes():
    scan = Scan(np.zeros((1, 4, 4, 4), np.float32), None, (1, 1, 1))
    assert scan.orientation_letters() is None and scan.plane() is None and scan.edge_letters() == {}
    assert to_radiological_view(scan) is scan and "Axes" not in dict(scan.describe())
    with pytest.raises(ScanError, match="no patient axes"):
        to_ras(scan)


@given(scans())
def test_cropping_moves_no_voxel(scan):
    threshold = float(scan.voxels.max()) / 2
    cropped = crop_to_foreground(scan, threshold)
    kept = np.isin(np.sort(scan.voxels, axis=None), cropped.voxels)
    assert (scan.voxels > threshold).sum() == (cropped.voxels > threshold).sum()
    np.testing.assert_allclose(places(cropped.voxels, cropped.affine), places(scan.voxels, scan.affine)[kept], atol=1e-6)


def test_a_description_names_everything_that_may_be_shown():
    scan = Scan(
        np.zeros((3, 512, 512, 20), np.float32),
        np.diag([-0.5, -0.5, 3, 1]),
        (0.5, 0.5, 3.0),
        "MR",
        "4 T1",
        [(-110, 189)],
        ["A."],
    )
    assert scan.describe() == [
        ("Modality", "MRI"),
        ("Series", "4 T1"),
        ("Size", "512 × 512 × 20 voxels, colour"),
        ("Spacing", "0.5 × 0.5 × 3 mm"),
        ("Extent", "256 × 256 × 60 mm"),
        ("Axes", "rows run to L, columns to P, slices to S"),
        ("Values", "0 to 0"),
        ("Window", "-110 to 189 (centre 39.5, width 299)"),
        ("Warning", "A."),
    ]


MODULES = ("affine_radfm", "scan_radfm", "load_scan_radfm", "array_radfm", "archive_radfm", "nifti_radfm", "itk_radfm")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module):
    assert doctest.testmod(import_module(f"radfm.{module}")).failed == 0


def test_the_examples_about_reading_scans_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "docs" / "reading-scans.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0 and result.attempted > 10
