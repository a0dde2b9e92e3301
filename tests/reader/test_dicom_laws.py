"""Laws on random geometry: how a volume is cut into files and frames, and in what order they come, changes nothing."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_inputs import COLUMNS, ENHANCED_CT, ROWS, enhanced, image, item, pixels, to_bytes
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from radfm.load_scan_radfm import load_scan

finite = {"allow_nan": False, "allow_infinity": False}


@st.composite
def geometries(draw):
    """A volume's directions, spacing, first position and number of slices; places of slices may be jittered and tilted."""
    angles = draw(st.tuples(*[st.floats(-3.1, 3.1, **finite)] * 3))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = rotation @ turn
    spacing = draw(st.tuples(*[st.floats(0.3, 6, **finite)] * 3))
    origin = np.array(draw(st.tuples(*[st.floats(-300, 300, **finite)] * 3)))
    count = draw(st.integers(2, 9))
    jitter = draw(st.lists(st.floats(-0.05, 0.05, **finite), min_size=count, max_size=count))
    return rotation, spacing, origin, count, np.array(jitter)


def positions_of(geometry):
    rotation, spacing, origin, count, jitter = geometry
    return [origin + rotation[:, 2] * spacing[2] * (k + jitter[k]) for k in range(count)]


def decimal(values):
    """As a header has them: at most 16 characters."""
    return [f"{float(v):.9g}" for v in values]


def write(geometry, cuts, order):
    """The volume in files that start at `cuts`, of one frame or of several, written in this order."""
    rotation, spacing, _, count, _ = geometry
    orientation, positions = decimal([*rotation[:, 0], *rotation[:, 1]]), positions_of(geometry)
    pieces = [list(range(count))[start:end] for start, end in zip([0, *cuts], [*cuts, count], strict=True)]
    contents = []
    for number in order:
        piece = pieces[number % len(pieces)]
        tags = {"InstanceNumber": piece[0] + 1, "SOPInstanceUID": f"1.2.{piece[0] + 1}", "Modality": "CT"}
        frames = [{"position": decimal(positions[k])} for k in piece]
        dataset = enhanced(frames, np.stack([pixels(k) for k in piece]), ENHANCED_CT, **tags)
        shared = Dataset()
        shared.PlaneOrientationSequence = item(ImageOrientationPatient=orientation)
        shared.PixelMeasuresSequence = item(PixelSpacing=decimal(spacing[:2]))
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        contents.append(to_bytes(dataset))
    return contents


def write_single(geometry, order):
    rotation, spacing, _, _, _ = geometry
    positions = positions_of(geometry)
    return [
        to_bytes(
            image(
                pixels(k),
                "1.2.840.10008.5.1.4.1.1.2",
                Modality="CT",
                InstanceNumber=k + 1,
                SOPInstanceUID=f"1.2.{k + 1}",
                PixelSpacing=decimal(spacing[:2]),
                ImageOrientationPatient=decimal([*rotation[:, 0], *rotation[:, 1]]),
                ImagePositionPatient=decimal(positions[k]),
            )
        )
        for k in order
    ]


def read(contents):
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            (Path(folder) / f"{number:03}").write_bytes(content)
        return load_scan(folder)


@settings(max_examples=25, deadline=None)
@given(geometry=geometries(), data=st.data())
def test_files_and_frames_in_any_order_give_one_scan(geometry, data):
    count = geometry[3]
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1))))
    wanted = read(write_single(geometry, range(count)))
    shuffled = read(write_single(geometry, data.draw(st.permutations(range(count)))))
    framed = read(write(geometry, cuts, data.draw(st.permutations(range(len(cuts) + 1)))))
    for scan in (shuffled, framed):
        np.testing.assert_array_equal(scan.voxels, wanted.voxels)
        np.testing.assert_allclose(scan.affine, wanted.affine, atol=1e-6)
        assert scan.spacing == pytest.approx(wanted.spacing) and scan.warnings == wanted.warnings


@settings(max_examples=25, deadline=None)
@given(geometry=geometries(), order=st.randoms(use_true_random=False))
def test_every_voxel_lies_where_its_own_header_says_within_half_a_voxel(geometry, order):
    rotation, spacing, _, count, _ = geometry
    numbers = list(range(count))
    order.shuffle(numbers)
    scan = read(write_single(geometry, numbers))
    assert scan.voxels.shape == (1, ROWS, COLUMNS, count)
    for k, position in enumerate(positions_of(geometry)):
        for i, j in ((0, 0), (ROWS - 1, COLUMNS - 1), (ROWS - 1, 0)):
            place = position + rotation[:, 1] * spacing[0] * i + rotation[:, 0] * spacing[1] * j
            at = np.linalg.solve(scan.affine, [-place[0], -place[1], place[2], 1])[:3]
            index = np.rint(at).astype(int)
            assert np.abs(at - index).max() <= 0.5
            assert scan.voxels[(0, *index)] == pixels(k)[i, j]


@settings(max_examples=25, deadline=None)
@given(geometry=geometries(), repeats=st.integers(2, 3), order=st.randoms(use_true_random=False))
def test_volumes_at_one_place_are_each_what_they_are_alone(geometry, repeats, order):
    count = geometry[3]
    contents, alone = [], []
    rotation, spacing, _, _, _ = geometry
    for v in range(repeats):
        files = [
            to_bytes(
                image(
                    pixels(k, 10 * v),
                    EchoTime=5.0 * (v + 1),
                    InstanceNumber=v * count + k + 1,
                    PixelSpacing=decimal(spacing[:2]),
                    ImageOrientationPatient=decimal([*rotation[:, 0], *rotation[:, 1]]),
                    ImagePositionPatient=decimal(position),
                )
            )
            for k, position in enumerate(positions_of(geometry))
        ]
        contents += files
        alone.append(read(files))
    order.shuffle(contents)
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            (Path(folder) / f"{number:03}").write_bytes(content)
        for v in range(repeats):
            scan = load_scan(folder, volume=v)
            np.testing.assert_array_equal(scan.voxels, alone[v].voxels)
            np.testing.assert_allclose(scan.affine, alone[v].affine, atol=1e-9)
