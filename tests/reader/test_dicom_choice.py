"""Which series, and which files of it, are read."""

import numpy as np
import pytest
from odd_inputs import AXIAL, enhanced, pixels, save, slice_at, stack

from radfm.load_scan_radfm import ScanError, list_series, load_scan


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
    whole = enhanced([{"position": (0, 0, 5 * k)} for k in range(6)], np.stack([pixels(k) for k in range(6)]))
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
