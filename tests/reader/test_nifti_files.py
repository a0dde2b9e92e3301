"""Every volume that nibabel's wheel brings, and the ways to write NIfTI, against nibabel itself."""

import gzip
import struct
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from radfm.load_scan_radfm import ScanError, list_volumes, load_scan

VOLUMES = (
    "anatomical.nii", "functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "reoriented_anat_moved.nii",
    "standard.nii.gz", "resampled_anat_moved.nii", "test.mgz", "tiny.mnc",
)  # fmt: skip


@pytest.mark.parametrize("name", VOLUMES)
def test_voxels_and_affine_are_nibabels(name, nifti_files):
    image, scan = nibabel.load(nifti_files / name), load_scan(nifti_files / name)
    wanted = image.get_fdata(dtype=np.float32)
    wanted = wanted[..., 0] if wanted.ndim == 4 else wanted
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(scan.voxels[0][finite], wanted[finite])
    assert finite.all() or "without a finite value" in scan.warnings[-1]
    np.testing.assert_allclose(scan.affine, image.affine)
    np.testing.assert_allclose(scan.spacing, np.linalg.norm(image.affine[:3, :3], axis=0))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.AnalyzeImage])
def test_every_way_to_write_a_volume(kind, tmp_path):
    values = np.random.default_rng(0).integers(-500, 500, (5, 6, 7)).astype(np.int16)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    image = kind(values, affine)
    file = tmp_path / ("a.img" if kind in (nibabel.Nifti1Pair, nibabel.AnalyzeImage) else "a.nii")
    nibabel.save(image, file)
    scan = load_scan(file)
    np.testing.assert_array_equal(scan.voxels[0], values)
    np.testing.assert_allclose(np.abs(scan.spacing), (2, 3, 4))


def test_scaling_is_applied_once(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2.5, -10)
    nibabel.save(image, tmp_path / "a.nii.gz")
    stored = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_scan(tmp_path / "a.nii.gz").voxels[0], stored.get_fdata(dtype=np.float32))


def test_a_chosen_volume_of_several(nifti_files):
    image = nibabel.load(nifti_files / "functional.nii")
    scan = load_scan(nifti_files / "functional.nii", volume=3)
    np.testing.assert_array_equal(scan.voxels[0], image.get_fdata(dtype=np.float32)[..., 3])
    assert "Only volume 3 of 20" in scan.warnings[0]
    with pytest.raises(ScanError, match="volumes 0 to 19, and no volume 20"):
        load_scan(nifti_files / "functional.nii", volume=20)


def test_colour_voxels_are_three_channels():
    values = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    values["G"] = 7
    scan = load_scan(nibabel.Nifti1Image(values, np.eye(4)))
    assert scan.voxels.shape == (3, 4, 5, 6) and (scan.voxels[1] == 7).all()


def test_what_is_no_volume_is_refused(nifti_files):
    with pytest.raises(ScanError, match="no volume of voxels"):
        load_scan(nifti_files / "row_major.dconn.nii")


def test_headers_that_announce_more_than_there_is_are_refused_at_once():
    header = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    struct.pack_into("<8h", header, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    with pytest.raises(ScanError, match=r"108000 GB, more than 2\.15 GB"):
        load_scan(bytes(header))
    struct.pack_into("<8h", header, 40, 3, 300, 300, 30, 1, 1, 1, 1)
    with pytest.raises(ScanError, match="cut short: its voxels cannot be read"):
        load_scan(bytes(header))
    bomb = gzip.compress(bytes(header[:352]) + bytes(1 << 24))
    with pytest.raises(ScanError, match=r"0\.0108 GB, more than 0\.00105 GB"):
        load_scan(bomb, max_bytes=1 << 20)


def test_a_header_that_nibabel_mends_leaves_the_logs_quiet(nifti_files, caplog, recwarn):
    content = bytearray(gzip.decompress((nifti_files / "example4d.nii.gz").read_bytes()))
    content[252:254] = (1024).to_bytes(2, "little")
    load_scan(bytes(content))
    assert not caplog.records and not recwarn.list


def test_more_volumes_than_numbers_can_count_are_refused():
    content = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    struct.pack_into("<8h", content, 40, 7, 2, 2, 2, 32767, 32767, 32767, 32767)
    with pytest.raises(ScanError, match="more volumes than any file holds"):
        load_scan(bytes(content))


VALUES = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def header_with(**fields):
    """A NIfTI-1 file of VALUES whose header fields are set as they are, unchecked."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(VALUES.shape)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"], header["scl_slope"] = b"n+1", 352, 1
    header["pixdim"][1:4] = 2, 3, 4
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + VALUES.tobytes(order="F")


def rows_of(affine):
    return dict(zip(("srow_x", "srow_y", "srow_z"), np.asarray(affine, np.float32)[:3], strict=True))


def test_without_an_orientation_the_spacing_stays_and_a_warning_says_so():
    scan = load_scan(header_with())
    assert scan.affine is None and scan.spacing == (2, 3, 4)
    assert "left and right are unknown" in scan.warnings[0]
    np.testing.assert_array_equal(scan.voxels[0], VALUES)
    analyze = nibabel.AnalyzeImage(VALUES, np.diag([2.0, 3, 4, 1]))
    scan = load_scan(analyze)
    assert scan.affine is None and scan.spacing == (2, 3, 4) and "Analyze does not state an orientation" in scan.warnings[0]


@pytest.mark.parametrize(("code", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_lengths_are_in_the_units_that_the_header_names(code, mm):
    affine = np.array([[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    scan = load_scan(header_with(sform_code=1, xyzt_units=code, **rows_of(affine)))
    np.testing.assert_allclose(scan.affine[:3], affine[:3] * mm)
    np.testing.assert_allclose(scan.spacing, np.multiply((2, 3, 4), mm))
    np.testing.assert_allclose(load_scan(header_with(xyzt_units=code)).spacing, np.multiply((2, 3, 4), mm))


def test_the_sform_comes_before_the_qform_and_their_disagreement_is_said():
    sform = np.diag([2.0, 3, 4, 1])
    agree = load_scan(header_with(sform_code=1, qform_code=1, **rows_of(sform)))
    assert agree.warnings == [] and np.array_equal(agree.affine, sform)
    sform[0, 3] = 30
    moved = load_scan(header_with(sform_code=1, qform_code=1, **rows_of(sform)))
    assert np.array_equal(moved.affine, sform) and "sform and qform place voxels up to 30 mm apart" in moved.warnings[0]
    sform[0, 3] = 0.9  # less than half a voxel
    assert load_scan(header_with(sform_code=1, qform_code=1, **rows_of(sform))).warnings == []


def test_a_singular_sform_leaves_the_qform_or_no_affine():
    by_qform = load_scan(header_with(sform_code=1, qform_code=1))
    assert np.array_equal(np.diag(by_qform.affine), (2, 3, 4, 1)) and by_qform.warnings == [
        "The sform is singular and was not used."
    ]
    unplaced = load_scan(header_with(sform_code=1))
    assert unplaced.affine is None and unplaced.spacing == (2, 3, 4) and len(unplaced.warnings) == 2


def test_gzip_is_told_by_content_and_not_by_the_name(tmp_path):
    content = header_with(sform_code=1, **rows_of(np.eye(4)))
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(content))
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "nothing").write_bytes(gzip.compress(content))
    for name in ("zipped.nii", "plain.nii.gz", "nothing"):
        np.testing.assert_array_equal(load_scan(tmp_path / name).voxels[0], VALUES)


@pytest.mark.parametrize("kept", [100, 351, 360, -1])
@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_file_is_refused_in_a_sentence(kept, packed, tmp_path):
    content = header_with(sform_code=1, **rows_of(np.eye(4)))
    content = gzip.compress(np.random.default_rng(0).bytes(20) + content)[:-12] if packed and kept == 100 else content[:kept]
    (tmp_path / "cut.nii").write_bytes(gzip.compress(content) if packed and kept != 100 else content)
    with pytest.raises(ScanError, match=r"cut\.nii: .*(damaged|cut short|no scan)") as refused:
        load_scan(tmp_path / "cut.nii")
    assert "Error" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_gzip_stream_that_ends_early_is_refused(tmp_path):
    values = np.random.default_rng(0).integers(0, 1000, (30, 30, 30)).astype(np.int16)
    content = gzip.compress(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())
    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ScanError, match="cut short: its voxels cannot be read"):
        load_scan(tmp_path / "cut.nii.gz")


def test_volumes_are_listed_and_chosen_in_the_order_of_the_file(tmp_path):
    values = np.arange(2 * 3 * 4 * 2 * 3, dtype=np.float32).reshape(2, 3, 4, 2, 3)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_zooms((1, 1, 1, 1.5, 1))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "a.nii")
    lines = list_volumes(tmp_path / "a.nii")
    assert len(lines) == 6 and lines[2] == "2 · 2 × 3 × 4 · 3 s"
    np.testing.assert_array_equal(load_scan(tmp_path / "a.nii", volume=1).voxels[0], values[..., 1, 0])
    np.testing.assert_array_equal(load_scan(tmp_path / "a.nii", volume=2).voxels[0], values[..., 0, 1])
    with pytest.raises(ScanError, match="volumes have no names, so volume has to be a number from 0 to 5"):
        load_scan(tmp_path / "a.nii", volume={"EchoTime": 4.6})


def a_ct(lowest=-1024.0):
    """Air around a body of soft tissue with some bone, in HU; the corners padded with `lowest`."""
    rng = np.random.default_rng(0)
    values = np.rint(rng.normal(-1000, 8, (40, 40, 20)))
    values[8:32, 8:32] = np.rint(rng.normal(40, 30, (24, 24, 20)))
    values[18:21, 18:21] = 700
    values[:4, :4] = lowest
    return nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))


@pytest.mark.parametrize("padding", [-2000, -3024, -8192])
def test_padding_of_a_ct_becomes_air(padding):
    scan = load_scan(a_ct(padding))
    assert scan.modality == "CT" and -1100 < scan.voxels.min() < -1000
    assert f"320 voxels of padding ({padding}) were set to" in scan.warnings[1]
    assert (scan.voxels[0, :4, :4] == scan.voxels.min()).all()


def test_a_padded_chest_with_little_air_around_it_is_a_ct():
    rng = np.random.default_rng(0)
    values = np.full((40, 40, 20), -3024.0)
    values[4:36, 4:36] = rng.normal(-1000, 10, (32, 32, 20))
    values[5:35, 5:35] = rng.normal(30, 40, (30, 30, 20))
    values[10:30, 10:20] = rng.normal(-800, 30, (20, 10, 20))
    values[20, 30] = 600
    scan = load_scan(nibabel.Nifti1Image(np.rint(values).astype(np.int16), np.eye(4)))
    assert scan.modality == "CT" and scan.voxels.min() > -1100


def test_what_cannot_be_hu_alone_stays_without_a_modality():
    rng = np.random.default_rng(0)
    phase = rng.integers(-4096, 4095, (30, 30, 30)).astype(np.int16)
    difference = rng.normal(0, 400, (30, 30, 30)).astype(np.float32)
    t1 = np.abs(rng.normal(300, 200, (30, 30, 30))).astype(np.float32)
    uniform = rng.uniform(-1024, 1500, (30, 30, 30)).astype(np.float32)
    for values in (phase, difference, t1, uniform):
        scan = load_scan(nibabel.Nifti1Image(values, np.eye(4)))
        assert scan.modality is None and scan.warnings == []
    assert load_scan(a_ct()).modality == "CT"


def test_scaled_voxels_take_little_more_memory_than_their_float32(tmp_path):
    """A volume of 128 MB as float32 that is scaled; a float64 copy of it would be 256 MB more."""
    image = nibabel.Nifti1Image(np.zeros((512, 512, 128), np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -1.0)
    nibabel.save(image, tmp_path / "a.nii")
    code = (
        "import resource, sys\n"
        "from radfm.load_scan_radfm import load_scan\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "load_scan(sys.argv[2]); before = peak()\n"
        "scan = load_scan(sys.argv[1]); print((peak() - before) / scan.voxels.nbytes)\n"
    )
    small = tmp_path / "small.nii"
    nibabel.save(nibabel.Nifti1Image(VALUES, np.eye(4)), small)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.nii"), str(small)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 1.8


def test_a_pair_without_its_voxels_names_the_file_that_is_missing(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(VALUES, np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(ScanError, match=r"a\.hdr: is a header .* a\.img is not in the same folder"):
        load_scan(tmp_path / "a.hdr")


def test_a_scaling_that_is_no_number_ends_in_a_sentence(nifti_files):
    content = bytearray((nifti_files / "anatomical.nii").read_bytes())
    order = ">" if content[:4] == struct.pack(">i", 348) else "<"
    struct.pack_into(f"{order}2f", content, 112, 2.0, float("nan"))  # scl_slope, scl_inter
    with pytest.raises(ScanError, match="its header is damaged"):
        load_scan(bytes(content))
