"""Kinds of DICOM that are easily read wrongly; each is made here, so that the right values are known."""

import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pydicom
import pytest
from odd_inputs import (
    AXIAL,
    COLUMNS,
    CT,
    ENHANCED_CT,
    NUCLEAR,
    ROWS,
    RT_DOSE,
    SEGMENTATION,
    TOMOSYNTHESIS,
    ULTRASOUND,
    ULTRASOUND_FILM,
    enhanced,
    image,
    item,
    pet,
    pixels,
    save,
    slice_at,
    stack,
    to_bytes,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, RLELossless

from radfm.load_scan_radfm import ScanError, list_series, list_volumes, load_scan


def volumes_of(source, count):
    """Every volume that can be chosen; one more is an error."""
    with pytest.raises(ScanError, match=f"0 to {count - 1}, and no"):
        load_scan(source, volume=count)
    assert len(list_volumes(source)) == count
    return [load_scan(source, volume=v) for v in range(count)]


def check_offsets(source, offsets, slices=6):
    """Volume v is volume 0 plus a number."""
    found = volumes_of(source, len(offsets))
    for scan, offset in zip(found, offsets, strict=True):
        assert scan.voxels.shape == (1, ROWS, COLUMNS, slices)
        for k in range(slices):
            np.testing.assert_array_equal(scan.voxels[0, ..., k], pixels(k, offset))
    return found


# -- several volumes in one series


def repeated(counts, tags):
    """Slices at six places, once for each volume: offset 10·v, its tags, instance numbers from volume to volume."""
    return [
        slice_at(k, (0, 0, 5 * k), add=10 * v, InstanceNumber=v * 6 + k + 1, **tags(v, k))
        for v in range(counts)
        for k in range(6)
    ]


def test_diffusion_directions_of_one_b_value_are_volumes(tmp_path):
    directions = [None, [1, 0, 0], [0, 1, 0], [0, 0, 1]]

    def tags(v, k):
        return {"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": directions[v]} if v else {"DiffusionBValue": 0.0}

    source = save(tmp_path / "dwi", repeated(4, tags))
    check_offsets(source, [0, 10, 20, 30])
    assert load_scan(source, volume={"DiffusionBValue": 0}).voxels[0, 0, 0, 0] == 0
    assert load_scan(source, volume={"DiffusionGradientOrientation": [0, 1, 0]}).voxels[0, 0, 0, 0] == 20


def test_volumes_that_only_the_instance_number_tells_apart(tmp_path):
    source = save(tmp_path / "fmri", repeated(3, lambda v, k: {}))
    check_offsets(source, [0, 10, 20])
    assert [line.split("from instance ")[1].split(" ")[0] for line in list_volumes(source)] == ["1", "7", "13"]


def test_volumes_whose_instance_numbers_run_through_the_volumes_first(tmp_path):
    slices = [slice_at(k, (0, 0, 5 * k), add=10 * v, InstanceNumber=k * 3 + v + 1) for v in range(3) for k in range(6)]
    check_offsets(save(tmp_path / "fmri", slices), [0, 10, 20])


def test_two_echoes_of_magnitude_and_phase_are_four_volumes_and_magnitude_comes_first(tmp_path):
    def tags(v, k):
        return {"EchoTime": (7.1, 4.6)[v // 2], "ImageType": ["ORIGINAL", "PRIMARY", "PM"[v % 2], "FFE"]}

    source = save(tmp_path / "echoes", repeated(4, tags))
    found = volumes_of(source, 4)
    assert sorted(scan.voxels[0, 0, 0, 0] for scan in found) == [0, 10, 20, 30]
    assert load_scan(source).voxels[0, 0, 0, 0] == 30  # magnitude of the first echo
    assert "4 volumes" in load_scan(source).warnings[0]
    assert load_scan(source, volume={"EchoTime": 7.1001, "ImageType": "P"}).voxels[0, 0, 0, 0] == 0
    with pytest.raises(ScanError, match=r"no volume with \{'EchoTime': 5\}"):
        load_scan(source, volume={"EchoTime": 5})


def test_each_slice_with_its_own_time(tmp_path):
    def tags(v, k):
        return {"AcquisitionTime": f"1200{10 * v + k:02}.500"}

    slices = repeated(4, tags)
    for dataset in slices:
        del dataset.InstanceNumber
    check_offsets(save(tmp_path / "dce", slices), [0, 10, 20, 30])


def test_the_scanners_own_index_comes_before_other_keys(tmp_path):
    def tags(v, k):
        return {"TemporalPositionIdentifier": 2 - v, "EchoTime": 5.0 * (v + 1)}

    first, second = volumes_of(save(tmp_path / "dynamic", repeated(2, tags)), 2)
    assert (first.voxels[0, 0, 0, 0], second.voxels[0, 0, 0, 0]) == (10, 0)


def test_frames_with_b_values_are_volumes():
    frames, values = [], []
    for v, (b, direction) in enumerate([(0.0, None), (1000.0, [1.0, 0, 0]), (1000.0, [0, 1.0, 0])]):
        for k in range(6):
            gradient = {"DiffusionGradientDirectionSequence": item(DiffusionGradientOrientation=direction)} if v else {}
            diffusion = item(DiffusionBValue=b, **gradient)
            frames.append({"position": (0, 0, 5 * k), "MRDiffusionSequence": diffusion})
            values.append(pixels(k, 10 * v))
    check_offsets_of_bytes = to_bytes(enhanced(frames, np.stack(values)))
    for v in range(3):
        scan = load_scan(check_offsets_of_bytes, volume=v)
        assert scan.voxels[0, 0, 0].tolist() == [100 * k + 10 * v for k in range(6)]


def test_frames_of_magnitude_and_phase(tmp_path):
    frames, values = [], []
    for v, kind in enumerate(("PHASE", "MAGNITUDE")):
        for k in range(6):
            types = item(FrameType=["ORIGINAL", "PRIMARY", kind[0], "NONE"], ComplexImageComponent=kind)
            frames.append({"position": (0, 0, 5 * k), "MRImageFrameTypeSequence": types})
            values.append(pixels(k, 1000 * v))
    scan = load_scan(to_bytes(enhanced(frames, np.stack(values))))
    assert scan.voxels[0, 0, 0, 0] == 1000 and "PHASE" in scan.warnings[0]


def test_dimension_indices_without_slices_tell_volumes_apart():
    frames = [
        {
            "position": (0, 0, 5 * k),
            "FrameContentSequence": item(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[2 - v, k + 1]),
        }
        for v in range(2)
        for k in range(6)
    ]
    dataset = enhanced(frames, np.stack([pixels(k, 10 * v) for v in range(2) for k in range(6)]))
    pointers = []
    for pointer in ("EffectiveEchoTime", "InStackPositionNumber"):
        index = Dataset()
        index.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(pointer)
        pointers.append(index)
    dataset.DimensionIndexSequence = Sequence(pointers)
    assert load_scan(to_bytes(dataset)).voxels[0, 0, 0, 0] == 10
    assert load_scan(to_bytes(dataset), volume=1).voxels[0, 0, 0, 0] == 0


def test_moments_at_one_place_are_images_to_choose_from():
    frames = [
        {"position": (0, 0, 0), "FrameContentSequence": item(StackID="1", TemporalPositionIndex=k + 1)} for k in range(6)
    ]
    content = to_bytes(enhanced(frames, np.stack([pixels(k) for k in range(6)])))
    for k in range(6):
        scan = load_scan(content, volume=k)
        assert scan.voxels.shape[-1] == 1 and scan.voxels[0, 0, 0, 0] == 100 * k
    assert "6" in load_scan(content).warnings[0]


def test_an_incomplete_volume_is_one_of_the_volumes_and_not_the_default(tmp_path):
    slices = repeated(2, lambda v, k: {"EchoTime": 10.0 * (2 - v)})[:-1]
    scan = load_scan(save(tmp_path / "echoes", slices))
    assert scan.voxels.shape[-1] == 6 and scan.voxels[0, 0, 0, 0] == 0


def test_one_more_key_than_needed_is_not_used(tmp_path):
    def tags(v, k):
        return {"EchoTime": 10.0 * (v + 1), "FlipAngle": float(k % 2)}

    check_offsets(save(tmp_path / "echoes", repeated(2, tags)), [0, 10])


# -- grids that differ


def acquisitions(second_start, tags=lambda v: {"AcquisitionNumber": v + 1}):
    return [
        slice_at(k, (0, 0, second_start * v + 3 * k), add=50 * v, sop_class=CT, InstanceNumber=v * 10 + k + 1, **tags(v))
        for v in range(2)
        for k in range(10)
    ]


@pytest.mark.parametrize("second_start", [1.5, 1.0, 22.0])
def test_two_grids_are_never_interleaved(second_start, tmp_path):
    found = volumes_of(save(tmp_path / "phases", acquisitions(second_start)), 2)
    for scan, offset in zip(found, (0, 50), strict=True):
        assert scan.voxels.shape[-1] == 10 and scan.spacing[2] == pytest.approx(3)
        assert scan.voxels[0, 0, 0].tolist() == [100 * k + offset for k in range(10)]


def test_two_passes_that_only_their_order_tells_apart(tmp_path):
    found = volumes_of(save(tmp_path / "passes", acquisitions(22.0, lambda v: {})), 2)
    assert [scan.voxels.shape[-1] for scan in found] == [10, 10]


def test_packages_of_interleaved_slices_are_one_volume(tmp_path):
    slices = stack(10, 3.0, change=lambda k: {"AcquisitionNumber": k % 2 + 1, "SliceThickness": 3})
    assert load_scan(save(tmp_path / "packages", slices)).voxels.shape[-1] == 10


def test_rotations_one_behind_the_other_are_one_volume(tmp_path):
    slices = stack(12, 3.0, change=lambda k: {"AcquisitionNumber": k // 4 + 1})
    scan = load_scan(save(tmp_path / "rotations", slices))
    assert scan.voxels.shape[-1] == 12 and scan.warnings == []


def test_a_pixel_spacing_that_changes_makes_two_volumes(tmp_path):
    slices = stack(20, 3.0, change=lambda k: {"PixelSpacing": [4, 4] if k < 10 else [3, 3]})
    first, second = volumes_of(save(tmp_path / "spacing", slices), 2)
    assert first.spacing == pytest.approx((4, 4, 3)) and second.spacing == pytest.approx((3, 3, 3))
    assert second.affine[:3, 3].tolist() == pytest.approx([10, 20, 30])


def test_a_centre_that_moves_leaves_every_slice_where_its_header_says(tmp_path):
    slices = [slice_at(k, (-10 + 8 * (k >= 10), -20, 3 * k), sop_class=CT) for k in range(20)]
    scan = load_scan(save(tmp_path / "moved", slices))
    assert "centre" in scan.warnings[0] and "tilt" not in scan.warnings[0]
    check_places(scan, slices)


def check_places(scan, slices):
    """Voxel (i, j, k) lies where its own slice's header says, within half a voxel."""
    for dataset in slices:
        orientation = np.array(dataset.ImageOrientationPatient, dtype=float)
        spacing = np.array(dataset.PixelSpacing, dtype=float)
        for i, j in ((0, 0), (ROWS - 1, COLUMNS - 1), (3, 2)):
            place = np.array(dataset.ImagePositionPatient, dtype=float)
            place = place + orientation[3:] * spacing[0] * i + orientation[:3] * spacing[1] * j
            at = np.linalg.solve(scan.affine, [-place[0], -place[1], place[2], 1])[:3]
            index = np.rint(at).astype(int)
            assert np.abs(at - index).max() <= 0.5
            assert scan.voxels[(0, *index)] == dataset.pixel_array[i, j]


def test_stacks_side_by_side_are_two_volumes(tmp_path):
    slices = [slice_at(k, (-300 * side, 0, 5 * k), add=10 * side) for side in range(2) for k in range(6)]
    found = volumes_of(save(tmp_path / "knees", slices), 2)
    assert sorted(scan.affine[0, 3] for scan in found) == pytest.approx([0, 300])


def test_blocks_of_parallel_slices_are_not_joined_across_their_gaps(tmp_path):
    slices = [slice_at(4 * b + k, (0, 0, 37 * b + 4 * k)) for b in range(3) for k in range(4)]
    found = volumes_of(save(tmp_path / "discs", slices), 3)
    assert [scan.voxels.shape[-1] for scan in found] == [4, 4, 4]
    assert [scan.affine[2, 3] for scan in found] == pytest.approx([0, 37, 74])


def test_orientations_that_differ_in_the_sixth_decimal_are_one_stack(tmp_path):
    def jitter(k):
        sine = 0.105 + 1e-6 * (-1) ** k
        cosine = np.sqrt(1 - sine**2)
        return {"ImageOrientationPatient": [round(float(v), 7) for v in (cosine, sine, 0, -sine, cosine, 0)]}

    scan = load_scan(save(tmp_path / "jitter", stack(20, 3.0, change=jitter)))
    assert scan.voxels.shape[-1] == 20 and scan.spacing[2] == pytest.approx(3) and scan.warnings == []


@pytest.mark.parametrize(("step", "decimals"), [(0.625, 1), (0.35, 1), (2.5, 0)])
def test_positions_that_were_rounded_are_an_even_grid(step, decimals, tmp_path):
    slices = [slice_at(k, (0, 0, round(-100 + step * k, decimals))) for k in range(20)]
    scan = load_scan(save(tmp_path / "rounded", slices))
    assert scan.voxels.shape[-1] == 20 and scan.spacing[2] == pytest.approx(step, abs=0.01)
    np.testing.assert_array_equal(scan.voxels[0, ..., 7], pixels(7))


def test_a_spacing_that_doubles_on_the_way_was_chosen(tmp_path):
    slices = [slice_at(k, (0, 0, 2 * k if k < 8 else 14 + 4 * (k - 7))) for k in range(12)]
    scan = load_scan(save(tmp_path / "doubled", slices))
    assert "Slices lie 2.00 to 4.00 mm apart" in scan.warnings[0]
    assert scan.spacing[2] == 2.0 and scan.voxels.shape[-1] == 16


def test_the_corners_of_a_straightened_stack_are_air(tmp_path):
    slices = [
        image(np.where(np.eye(ROWS, COLUMNS), 40, -1000).astype(np.int16), CT, InstanceNumber=k + 1, PixelSpacing=[1, 1],
              ImagePositionPatient=[0, k * 1.0, k * 3.0], ImageOrientationPatient=AXIAL)
        for k in range(8)
    ]  # fmt: skip
    scan = load_scan(save(tmp_path / "tilted", slices))
    assert "tilt of 18.4°" in scan.warnings[0]
    assert scan.voxels.shape[1] > ROWS and scan.voxels[0, -1, :, 0].max() == -1000


# -- space or time is decided by what the object is


FRAMES = np.stack([pixels(k) for k in range(6)])


def check_volume(scan, modality, spacing=(4, 4, 5)):
    assert scan.modality == modality and scan.voxels.shape == (1, ROWS, COLUMNS, 6)
    assert scan.spacing == pytest.approx(spacing)
    np.testing.assert_allclose(scan.affine[:3, 2], [0, 0, 5], atol=1e-9)
    assert scan.voxels[0, 0, 0].tolist() == [100 * k for k in range(6)]


def test_tomosynthesis_is_a_volume():
    frames = [{"position": (0, 0, 5 * k)} for k in range(6)]
    check_volume(load_scan(to_bytes(enhanced(frames, FRAMES, TOMOSYNTHESIS, Modality="MG"))), "MG")


def test_a_dose_is_a_volume_in_gray():
    tags = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": AXIAL, "PixelSpacing": [4, 4]}
    dataset = image(
        FRAMES, RT_DOSE, GridFrameOffsetVector=[5.0 * k for k in range(6)], DoseGridScaling=0.5, DoseUnits="GY", **tags
    )
    scan = load_scan(to_bytes(dataset))
    assert "dose in Gy" in scan.warnings[0]
    scan.voxels *= 2
    check_volume(scan, "RTDOSE")


def test_reconstructed_nuclear_slices_lie_where_the_detector_says():
    detector = item(ImagePositionPatient=[-100, -120, -20], ImageOrientationPatient=AXIAL)
    dataset = image(
        FRAMES, NUCLEAR, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], SpacingBetweenSlices=5,
        PixelSpacing=[4, 4], DetectorInformationSequence=detector, SliceVector=[1, 2, 3, 4, 5, 6],
    )  # fmt: skip
    scan = load_scan(to_bytes(dataset))
    check_volume(scan, "NM")
    assert scan.affine[:3, 3].tolist() == pytest.approx([100, 120, -20])


def test_the_sign_of_the_spacing_of_nuclear_slices_is_their_direction():
    detector = item(ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=AXIAL)
    tags = {"PixelSpacing": [4, 4], "DetectorInformationSequence": detector, "SpacingBetweenSlices": -5}
    dataset = image(FRAMES, NUCLEAR, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], **tags)
    scan = load_scan(to_bytes(dataset))
    assert scan.affine[2, 3] == pytest.approx(-25) and scan.voxels[0, 0, 0].tolist() == [500 - 100 * k for k in range(6)]


@pytest.mark.parametrize("kind", ["DYNAMIC", "WHOLE BODY", "TOMO", "GATED"])
def test_other_nuclear_frames_are_images_to_choose_from(kind):
    dataset = image(FRAMES, NUCLEAR, ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"], PixelSpacing=[4, 4])
    scan = load_scan(to_bytes(dataset), volume=4)
    assert scan.voxels.shape[-1] == 1 and scan.voxels[0, 0, 0, 0] == 400 and scan.affine is None
    assert "of 6" in scan.warnings[0]


def test_plain_ct_with_frames_and_one_position():
    tags = {"ImagePositionPatient": [-10, -20, -100], "ImageOrientationPatient": AXIAL, "PixelSpacing": [4, 4]}
    scan = load_scan(to_bytes(image(FRAMES, CT, SpacingBetweenSlices=5, **tags)))
    assert "Only the first of 6 frames says where it lies" in scan.warnings[0]
    check_volume(scan, "CT")


def test_a_segmentation_says_that_it_is_none():
    with pytest.raises(ScanError, match="is a segmentation"):
        load_scan(to_bytes(image(FRAMES.astype(np.uint8), SEGMENTATION, Modality="SEG")))


def test_a_mosaic_is_cut_into_its_slices(tmp_path):
    rows = np.concatenate([np.concatenate([pixels(3 * r + c) for c in range(3)], 1) for r in range(3)], 0)
    orientation, position = [1, 0, 0, 0, 1, 0], [-36, -48, 10]
    volumes = []
    for v in range(2):
        dataset = image(
            rows + 1000 * v, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], PixelSpacing=[4, 4], SpacingBetweenSlices=5,
            ImagePositionPatient=position, ImageOrientationPatient=orientation, AcquisitionNumber=v + 1,
            InstanceNumber=v + 1,
        )  # fmt: skip
        dataset.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 7)
        volumes.append(dataset)
    scan = load_scan(save(tmp_path / "mosaics", volumes))
    assert scan.voxels.shape == (1, ROWS, COLUMNS, 7) and "2 volumes" in scan.warnings[0]
    for k in range(7):
        np.testing.assert_array_equal(scan.voxels[0, ..., k], pixels(k))
    # A slice as large as the mosaic would start at -36, -48; the tile lies in its middle.
    assert scan.affine[:3, 3].tolist() == [36 - 4 * COLUMNS, 48 - 4 * ROWS, 10]
    assert load_scan(tmp_path / "mosaics", volume=1).voxels[0, 0, 0, 0] == 1000


def test_the_pixel_size_of_ultrasound_stands_in_its_region():
    region = item(
        RegionSpatialFormat=1, PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.02,
        PhysicalDeltaY=0.03,
        RegionLocationMinX0=0, RegionLocationMinY0=0, RegionLocationMaxX1=5, RegionLocationMaxY1=7,
    )  # fmt: skip
    spectrum = item(
        RegionSpatialFormat=3, PhysicalUnitsXDirection=4, PhysicalUnitsYDirection=7, PhysicalDeltaX=1.0, PhysicalDeltaY=1.0
    )
    regions = Sequence([spectrum[0], region[0]])
    dataset = image(pixels(0).astype(np.uint8), ULTRASOUND, Modality="US", SequenceOfUltrasoundRegions=regions)
    assert load_scan(to_bytes(dataset)).spacing[:2] == pytest.approx((0.3, 0.2))


def test_one_frame_of_a_long_film_costs_one_frame():
    frames = np.zeros((200, 256, 256), np.uint8)
    frames[:, 0, 0] = np.arange(200)
    content = to_bytes(image(frames, ULTRASOUND_FILM, Modality="US"))
    scan = load_scan(content, volume=199, max_bytes=1 << 20)  # all of them would need 52 MB
    assert scan.voxels.shape == (1, 256, 256, 1) and scan.voxels[0, 0, 0, 0] == 199
    assert "frame 199 of 200" in scan.warnings[0]


# -- which series, which files


def test_images_count_and_a_localizer_never_beats_a_volume(tmp_path):
    localizer = [
        slice_at(
            k,
            (0, 0, 0),
            SeriesInstanceUID="1.2.3.9",
            SeriesNumber=1,
            SeriesDescription="localizer",
            ImageOrientationPatient=o,
        )
        for k, o in enumerate([AXIAL, [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]] * 3)
    ]
    whole = enhanced([{"position": (0, 0, 5 * k)} for k in range(6)], FRAMES)
    source = save(tmp_path / "study", [*localizer, whole])
    scan = load_scan(source)
    assert scan.series == "5 made" and scan.voxels.shape[-1] == 6 and "1 localizer (9 images)" in scan.warnings[-1]
    assert ["localizer" in line for line in list_series(source)] == [False, True]


def test_an_unreadable_file_is_named_and_costs_nothing_else(tmp_path):
    source = save(tmp_path / "study", stack(10, 3.0))
    (source / "viewer.bin").write_bytes(bytes(128) + b"DICM" + b"\x02\0\0\0UL" + bytes(range(255, 0, -1)) * 20)
    scan = load_scan(source)
    assert scan.voxels.shape[-1] == 10 and "viewer.bin" in scan.warnings[0]


def test_the_next_series_is_read_where_the_first_cannot_be(tmp_path):
    broken = [slice_at(k, (0, 0, k), SeriesInstanceUID="1.2.3.8", SeriesDescription="broken") for k in range(8)]
    source = save(tmp_path / "study", [*broken, *stack(4)])
    for file in source.iterdir():
        content = file.read_bytes()
        if b"broken" in content:
            file.write_bytes(content[:-20])
    scan = load_scan(source)
    assert scan.series == "5 made" and "Series 5 broken cannot be read" in scan.warnings[0]
    with pytest.raises(ScanError, match="cut off"):
        load_scan(source, series="broken")


def test_a_missing_slice_of_the_first_series_is_no_reason_to_read_another(tmp_path):
    other = [slice_at(k, (0, 0, k), SeriesInstanceUID="1.2.3.8", SeriesDescription="other") for k in range(4)]
    slices = stack(10)
    del slices[4]
    with pytest.raises(ScanError, match=r"1 of 10 slices are missing .*allow_missing"):
        load_scan(save(tmp_path / "study", [*slices, *other]))


def test_a_series_whose_uid_changes_from_slice_to_slice_is_joined(tmp_path):
    slices = stack(6, change=lambda k: {"SeriesInstanceUID": f"1.2.3.{k + 10}"})
    scan = load_scan(save(tmp_path / "study", slices))
    assert scan.voxels.shape[-1] == 6 and "UID changes from slice to slice" in scan.warnings[0]


def test_a_slice_with_a_copy_under_another_name_is_dropped_once(tmp_path):
    slices = stack(6)
    scan = load_scan(save(tmp_path / "study", [*slices, slices[2]]))
    assert scan.voxels.shape[-1] == 6 and "1 slices came twice" in scan.warnings[0]


def test_one_image_under_many_names_is_one_image(tmp_path):
    dataset = slice_at(0, (0, 0, 0))
    scan = load_scan(save(tmp_path / "copies", [dataset] * 5))
    assert scan.voxels.shape[-1] == 1 and "4 slices came twice" in scan.warnings[0]


# -- pixels


@pytest.mark.parametrize("compressed", [False, True])
def test_a_palette_gives_colours_in_every_syntax(compressed):
    index = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS)
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    dataset = image(index, ULTRASOUND, **tags)
    tables = {"Red": 255 - np.arange(256), "Green": np.arange(256) // 2, "Blue": np.full(256, 7)}
    for colour, table in tables.items():
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.astype(np.uint8).tobytes())
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    voxels = load_scan(to_bytes(dataset)).voxels[..., 0]
    np.testing.assert_array_equal(voxels, np.stack([table[index] for table in tables.values()]))


@pytest.mark.parametrize(("vr", "value"), [("US", 63536), ("SS", -2000)])
def test_padding_written_in_the_wrong_sign_is_padding(vr, value):
    values = pixels(0)
    values[0] = -2000
    dataset = image(values, CT)
    dataset.add_new("PixelPaddingValue", vr, value)
    scan = load_scan(to_bytes(dataset))
    assert (scan.voxels[0, 0] == 6).all() and scan.voxels.min() == 6


def test_a_range_of_padding():
    values = pixels(0)
    values[0], values[1] = -2000, -1990
    dataset = image(values, CT)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1980)
    assert load_scan(to_bytes(dataset)).voxels.min() == 12


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_missing_last_delimiter_is_a_warning(syntax):
    dataset = image(np.arange(64 * 64, dtype=np.int16).reshape(64, 64), CT)
    dataset.compress(syntax, generate_instance_uid=False)
    content = to_bytes(dataset)
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    scan = load_scan(content[:-8])
    np.testing.assert_array_equal(scan.voxels[0, ..., 0].ravel(), np.arange(64 * 64))
    assert "delimiter" in scan.warnings[0]


def test_a_frame_that_is_cut_off_is_refused():
    dataset = image(np.random.default_rng(0).integers(0, 99, (64, 64)).astype(np.int16), CT)
    dataset.compress(RLELossless, generate_instance_uid=False)
    with pytest.raises(ScanError, match="cut off"):
        load_scan(to_bytes(dataset)[:-100])


def test_pixels_of_length_zero_are_named():
    with pytest.raises(ScanError, match=r"Pixel Data \(7FE0,0010\) is empty"):
        load_scan(to_bytes(image(pixels(0), CT, PixelData=b"")))


def test_a_spectral_selection_that_ends_at_zero_is_read(dicom_files):
    file = dicom_files / "JPGExtended.dcm"
    content = file.read_bytes()
    scan_header = content.index(b"\xff\xda", content.rindex(b"\xe0\x7f\x10\x00"))
    at = scan_header + 2 + int.from_bytes(content[scan_header + 2 : scan_header + 4], "big") - 2
    assert content[at - 1 : at + 1] == b"\x00\x3f"
    wanted = load_scan(file).voxels
    np.testing.assert_array_equal(load_scan(content[:at] + b"\0" + content[at + 1 :]).voxels, wanted)


def test_frames_in_several_fragments_are_found_with_and_without_an_offset_table():
    values = np.random.default_rng(0).integers(0, 2000, (4, 64, 64)).astype(np.int16)
    frames = [{"position": (0, 0, 5 * k)} for k in range(4)]
    dataset = enhanced(frames, values, ENHANCED_CT)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    encoded = list(generate_frames(dataset.PixelData, number_of_frames=4))
    for has_bot in (True, False):
        dataset.PixelData = encapsulate(encoded, fragments_per_frame=3, has_bot=has_bot)
        np.testing.assert_array_equal(load_scan(to_bytes(dataset)).voxels[0], values.transpose(1, 2, 0))


def test_decoding_time_is_proportional_to_the_frames():
    values = np.random.default_rng(0).integers(0, 2000, (24, 128, 128)).astype(np.int16)
    contents = {}
    for count in (6, 24):
        dataset = enhanced([{"position": (0, 0, k)} for k in range(count)], values[:count], ENHANCED_CT)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        contents[count] = to_bytes(dataset)
    seconds = {}
    for count, content in contents.items():
        load_scan(content)
        tries = []
        for _ in range(3):
            start = time.process_time()
            load_scan(content)
            tries.append(time.process_time() - start)
        seconds[count] = min(tries)
    assert seconds[24] < 8 * seconds[6]  # once for each frame of each frame would be 16 times


def compressed_stack():
    slices = stack(6)
    for k, dataset in enumerate(slices):
        dataset.Rows = dataset.Columns = 64
        dataset.PixelData = np.random.default_rng(k).integers(0, 2000, (64, 64)).astype(np.int16).tobytes()
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    return slices


def test_processes_decode_what_this_process_decodes(tmp_path, monkeypatch):
    from radfm import dicom_frames_radfm

    slices = compressed_stack()
    source = save(tmp_path / "series", slices)
    wanted = load_scan(source).voxels
    started = []

    class Counted(dicom_frames_radfm.DecodingProcess):
        def decode(self, data, layout):
            values = super().decode(data, layout)
            started.append(self._process.pid if self._is_ready else None)
            return values

    monkeypatch.setattr(dicom_frames_radfm, "PIXELS_FOR_PROCESSES", 1)
    monkeypatch.setattr(dicom_frames_radfm, "_cores", lambda: 2)
    monkeypatch.setattr(dicom_frames_radfm, "DecodingProcess", Counted)
    np.testing.assert_array_equal(load_scan(source).voxels, wanted)
    assert len(started) == 6 and None not in started
    monkeypatch.setattr(dicom_frames_radfm.sys, "executable", "")
    np.testing.assert_array_equal(load_scan(source).voxels, wanted)


# -- what only concerns display or SUV


def test_a_window_that_is_no_number_never_costs_the_scan():
    content = to_bytes(image(pixels(0), CT, WindowCenter="40", WindowWidth="400")).replace(b"DS\x02\x0040", b"DS\x02\x00NA")
    scan = load_scan(content)
    assert list(scan.windows) == [] and "window" in scan.warnings[0]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [(None, (-0.5, 79.5)), ("LINEAR", (-0.5, 79.5)), ("LINEAR_EXACT", (-0.5, 80.5)), ("SIGMOID", (-0.5, 80.5))],
)
def test_voi_functions_are_told_apart(function, wanted):
    tags = {"VOILUTFunction": function} if function else {}
    assert load_scan(to_bytes(image(pixels(0), CT, WindowCenter=40, WindowWidth=81, **tags))).windows == [wanted]


def test_monochrome1_is_inverted_on_the_range_of_its_bits_in_native_units():
    tags = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -1000}
    values = pixels(0).astype(np.uint16)
    scan = load_scan(to_bytes(image(values, CT, BitsStored=12, HighBit=11, WindowCenter=0, WindowWidth=101, **tags)))
    np.testing.assert_array_equal(scan.voxels[0, ..., 0], (4095 - values) * 2.0 - 1000)
    middle = 4095 * 2 - 2000
    assert scan.windows == [(middle - 49.5, middle + 50.5)]


PER_BQ = 70_000 / 7e7


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ({}, 2 * PER_BQ),
        ({"SeriesTime": "150000"}, 2 * PER_BQ),  # made again later
        ({"SeriesTime": "114500"}, 2**0.75 * PER_BQ),
        ({"DecayCorrection": "ADMIN"}, PER_BQ),
        ({"DecayCorrection": "NONE"}, None),
        ({"CorrectedImage": ["DECY", "RAN"]}, None),
        ({"CorrectedImage": ["DECY", "ATTN"]}, 2 * PER_BQ),
        ({"Units": "GML"}, 1.0),
        ({"Units": "CNTS"}, None),
        ({"drug": {"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20240101110000"}}, 2 * PER_BQ),
        ({"drug": {"RadiopharmaceuticalStartDateTime": "20231231120000"}}, 2**24 * PER_BQ),  # days are kept
        (
            {
                "drug": {"RadiopharmaceuticalStartTime": "233000"},  # before midnight
                "SeriesTime": "003000",
                "AcquisitionTime": "003000",
            },
            2 * PER_BQ,
        ),
        ({"drug": {"RadiopharmaceuticalStartDateTime": "20240101130000"}}, None),
        ({"PatientWeight": None}, None),
    ],
)  # fmt: skip
def test_suv_by_the_rules_of_qiba(tags, wanted):
    scan = load_scan(to_bytes(pet(**tags, WindowCenter=500.5, WindowWidth=1001)))
    if wanted is None:
        assert scan.voxels.max() == 1000 and "does not allow SUV" in scan.warnings[0]
    else:
        np.testing.assert_allclose(scan.voxels, 1000 * wanted, rtol=1e-5)
        assert scan.windows[0] == pytest.approx((0, 1000 * wanted), abs=1e-9 * wanted)


def test_the_earliest_acquisition_of_a_series_counts(tmp_path):
    slices = [pet(k, AcquisitionTime=f"12{10 * k:02}00", SeriesTime="150000") for k in range(4)]
    np.testing.assert_allclose(load_scan(save(tmp_path / "beds", slices)).voxels, 2000 * PER_BQ, rtol=1e-5)


def test_philips_counts_have_a_factor():
    dataset = pet(Units="CNTS")
    block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.000551")
    np.testing.assert_allclose(load_scan(to_bytes(dataset)).voxels, 0.551, rtol=1e-5)


# -- threads


def test_many_threads_read_the_same_and_change_nothing_global(tmp_path):
    import logging

    source = save(tmp_path / "series", stack(6))
    odd = to_bytes(image(pixels(0), CT, WindowCenter="40", WindowWidth="400")).replace(b"DS\x02\x0040", b"DS\x02\x00NA")
    wanted = load_scan(source).voxels
    filters, levels = list(warnings.filters), {name: logging.getLogger(name).level for name in ("pydicom", "nibabel.global")}
    differences = []

    def work():
        for _ in range(6):
            differences.append(np.abs(load_scan(source).voxels - wanted).max())
            load_scan(odd)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == [0] * 24
    assert warnings.filters == filters
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_a_script_without_a_main_guard_may_read_compressed_series(tmp_path):
    slices = compressed_stack()
    source = save(tmp_path / "series", slices)
    script = tmp_path / "script.py"
    script.write_text(
        "import radfm.dicom_frames_radfm as frames\nfrom radfm.load_scan_radfm import load_scan\n"
        f"frames.PIXELS_FOR_PROCESSES, frames._cores = 1, lambda: 2\nprint(load_scan({str(source)!r}))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines() == ["Scan(MR, 1×64×64×6, 4×4×5 mm)"], run.stderr
