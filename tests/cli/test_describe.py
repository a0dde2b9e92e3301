"""`radfm inspect`: left is left, whatever way a volume is stored."""

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from radfm.cli.describe import describe, draw
from radfm.cli.inspect import list_contents
from radfm.cli.main import app
from radfm.load_scan_radfm import list_series, load_scan


def marked_volume():
    """Ten voxels a side, brighter towards the patient's left, back and head, in that order of strength."""
    left, back, up = np.meshgrid(np.arange(9, -1, -1), np.arange(9, -1, -1), np.arange(10), indexing="ij")
    return nibabel.Nifti1Image((100 * left + 10 * back + up).astype(np.float32), np.diag([2.0, 2, 2, 1]))


@pytest.mark.parametrize("axes", ["RAS", "LPI", "ASR"])
def test_left_is_on_the_right_of_the_picture_in_every_storage_order(axes, tmp_path):
    image = marked_volume()
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    draw(load_scan(image.as_reoriented(turn)), tmp_path / "planes.png")
    picture = np.asarray(Image.open(tmp_path / "planes.png")).astype(int)
    third = picture.shape[1] // 3
    axial, coronal, sagittal = (picture[:, i * third : (i + 1) * third] for i in range(3))
    middle = picture.shape[0] // 2
    assert axial[middle, third - 60] > axial[middle, 60] + 50, "the patient's left on the picture's right"
    assert coronal[middle, third - 60] > coronal[middle, 60] + 50
    assert sagittal[middle, third - 60] > sagittal[middle, 60], "the patient's back on the picture's right"
    assert axial[-60, third // 2] > axial[60, third // 2], "and below in the axial plane"
    draw(load_scan(image), tmp_path / "same.png")
    assert (np.asarray(Image.open(tmp_path / "same.png")) == picture).all()


def test_lines_name_what_a_reader_needs(series_zips):
    scan = load_scan(series_zips / "dicom_series_ct.zip")
    text = "\n".join(describe("study.zip", scan))
    assert "study.zip: CT, volume" in text and "1 CT body 3 mm" in text
    assert "512 × 512 × 20 voxels" in text and "0.9766 × 0.9766 × 2 mm" in text
    assert "rows run to P, columns to L, slices to S" in text
    assert "-110 to 189 (centre 39.5, width 299)" in text and "HU" in text


def test_the_command_prints_and_draws(dicom_files, tmp_path):
    result = CliRunner().invoke(app, ["inspect", str(dicom_files / "CT_small.dcm"), "--png", str(tmp_path / "a.png")])
    assert result.exit_code == 0 and "CT, image" in result.stdout
    assert Image.open(tmp_path / "a.png").size[0] > 200


def test_a_picture_that_cannot_be_written_is_one_line_and_status_2(dicom_files, tmp_path):
    result = CliRunner().invoke(app, ["inspect", str(dicom_files / "CT_small.dcm"), "--png", str(tmp_path / "no" / "a.png")])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "a.png: cannot be written" in result.stderr


def test_several_series_of_a_source_are_listed(dicom_files, tmp_path):
    for name in ("CT_small.dcm", "MR_small.dcm"):
        (tmp_path / name).write_bytes((dicom_files / name).read_bytes())
    heading, *lines = list_contents(str(tmp_path))
    assert "series    2 in all; --series chooses one" in heading
    assert [line.strip() for line in lines[:2]] == list_series(tmp_path)
    assert not list(list_contents(str(dicom_files / "CT_small.dcm"))), "one series and one volume need no list"


def test_several_volumes_of_a_source_are_listed(nifti_files):
    heading, *lines = list_contents(str(nifti_files / "example4d.nii.gz"))
    assert "volumes   2 in all; --volume chooses one" in heading and len(lines) == 2
