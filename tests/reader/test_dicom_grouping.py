"""Which slices make a volume; every series is made here, so that the right volumes are known."""

import numpy as np
import pydicom
import pytest
from odd_inputs import AXIAL, COLUMNS, CT, ROWS, enhanced, image, item, pixels, save, slice_at, stack, to_bytes
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from radfm.load_scan_radfm import ScanError, list_volumes, load_scan


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
