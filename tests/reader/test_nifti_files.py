"""Every volume that nibabel's wheel brings, and the ways to write NIfTI, against nibabel itself."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from radfm.load_scan_radfm import ScanError, load_scan

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
    content = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    content[280:328] = bytes(48)  # srow_x, srow_y, srow_z of the sform
    with pytest.raises(ScanError, match="affine is singular"):
        load_scan(bytes(content))


def test_headers_that_announce_more_than_there_is_are_refused_at_once():
    header = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    struct.pack_into("<8h", header, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    with pytest.raises(ScanError, match="needs more than 2"):
        load_scan(bytes(header))
    struct.pack_into("<8h", header, 40, 3, 300, 300, 30, 1, 1, 1, 1)
    with pytest.raises(ScanError, match="voxels cannot be read"):
        load_scan(bytes(header))
    bomb = gzip.compress(bytes(header[:352]) + bytes(1 << 24))
    with pytest.raises(ScanError, match="unpacks to more than"):
        load_scan(bomb, max_bytes=1 << 20)


def test_a_header_that_nibabel_mends_leaves_the_logs_quiet(nifti_files, caplog, recwarn):
    content = bytearray(gzip.decompress((nifti_files / "example4d.nii.gz").read_bytes()))
    content[252:254] = (1024).to_bytes(2, "little")
    load_scan(bytes(content))
    assert not caplog.records and not recwarn.list


def test_more_volumes_than_numbers_can_count_are_refused():
    content = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    struct.pack_into("<8h", content, 40, 7, 2, 2, 2, 32767, 32767, 32767, 32767)
    with pytest.raises(ScanError, match=r"needs more than|cannot be read"):
        load_scan(bytes(content))
