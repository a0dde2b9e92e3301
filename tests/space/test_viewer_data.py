"""What the browser is given of a scan: voxels on their affine, letters, windows, slices, facts."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
from space_helpers import flipped, oblique_volume

import viewer
from prepare import edge_letters
from radfm import scan_radfm
from radfm.image_processing_radfm import CT_WINDOWS
from radfm.load_scan_radfm import load_scan
from radfm.scan_radfm import Scan


def test_a_flipped_copy_shows_the_same_anatomy_at_the_same_letters(tmp_path):
    shown = []
    for number, scan in enumerate((oblique_volume(), flipped(oblique_volume()))):
        viewer.write_nifti(scan, tmp_path / f"{number}.nii.gz", viewer.FULL_VOXELS)
        shown.append((nibabel.load(tmp_path / f"{number}.nii.gz"), edge_letters(scan, scan_radfm)))
    (image, letters), (other, other_letters) = shown
    assert letters == other_letters
    canonical, other_canonical = nibabel.as_closest_canonical(image), nibabel.as_closest_canonical(other)
    assert np.allclose(canonical.affine, other_canonical.affine, atol=1e-4)
    assert np.array_equal(canonical.get_fdata(), other_canonical.get_fdata())


def test_letters_of_an_upright_and_of_an_oblique_scan():
    upright = Scan(np.zeros((1, 4, 5, 6), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), (2.0, 2.0, 2.0))
    letters = edge_letters(upright, scan_radfm)
    assert letters["axial"] == {"top": "A", "bottom": "P", "left": "R", "right": "L"}
    assert letters["coronal"] == {"top": "S", "bottom": "I", "left": "R", "right": "L"}
    assert letters["sagittal"] == {"top": "S", "bottom": "I", "left": "A", "right": "P"}
    turn = np.eye(4)
    turn[:3, :3] = nibabel.eulerangles.euler2mat(np.radians(30), 0, 0) * 2
    letters = edge_letters(replace(upright, affine=turn), scan_radfm)
    assert {letters["axial"][edge] for edge in ("top", "bottom")} == {"AL", "PR"}


def test_a_scan_without_an_affine_has_no_letters():
    assert edge_letters(Scan(np.zeros((1, 4, 5, 1), np.float32), spacing=(1.0, 1.0, 1.0)), scan_radfm) == {}


def test_an_image_lies_as_it_is_drawn(tmp_path):
    voxels = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    viewer.write_nifti(Scan(voxels), tmp_path / "image.nii.gz", 100)
    image = nibabel.load(tmp_path / "image.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("P", "L", "S")
    assert np.array_equal(image.get_fdata()[..., 0], voxels[0, ..., 0])


@pytest.mark.parametrize("most", [2000, 300, 40])
def test_a_coarse_copy_has_the_voxels_of_the_scan_at_their_places(most, tmp_path):
    scan = oblique_volume()
    whole = viewer.write_nifti(scan, tmp_path / "coarse.nii", most)
    image = nibabel.load(tmp_path / "coarse.nii")
    assert not whole and image.get_fdata().size <= most
    for index in ((0, 0, 0), tuple(n - 1 for n in image.shape)):
        place = np.linalg.inv(scan.affine) @ image.affine @ [*index, 1]
        voxel = tuple(np.rint(place[:3]).astype(int))
        assert np.allclose(place[:3], voxel, atol=1e-4) and image.get_fdata()[index] == pytest.approx(scan.voxels[0][voxel])


def test_grey_values_stay_what_they_are():
    whole = np.array([[-1024.0, 3071.0]], np.float32)
    assert viewer.compact(whole).dtype == np.int16 and np.array_equal(viewer.compact(whole), whole)
    for odd in (whole + 0.5, whole * 100):
        assert viewer.compact(odd).dtype == np.float32 and np.array_equal(viewer.compact(odd), odd)


def test_ct_opens_with_the_window_of_its_file(dicom_files):
    scan = load_scan(dicom_files / "693_J2KI.dcm")
    first = viewer.windows(scan, CT_WINDOWS)[0]
    assert (first["low"], first["high"]) == scan.windows[0]


@pytest.mark.parametrize("modality", ["MR", "DX", "CT"])
def test_no_scan_opens_white(modality):
    """The window of the first slice of an MR series, say, which fits no other."""
    voxels = np.random.default_rng(0).uniform(500, 4000, (1, 16, 16, 9)).astype(np.float32)
    first = viewer.windows(Scan(voxels, modality=modality, windows=[(0.0, 20.0)]), CT_WINDOWS)[0]
    shown = (voxels[..., 4] - first["low"]) / (first["high"] - first["low"])
    assert (shown >= 1).mean() < viewer.CLIPPED_SHARE and (shown <= 0).mean() < viewer.CLIPPED_SHARE


def test_mr_opens_with_percentiles_and_offers_the_window_of_the_file():
    voxels = np.random.default_rng(0).uniform(0, 4000, (1, 16, 16, 9)).astype(np.float32)
    scan = Scan(voxels, modality="MR", windows=[(0.0, 2000.0)])
    names = [window["name"] for window in viewer.windows(scan, CT_WINDOWS)]
    assert names == ["Automatic", "From file", "Full range"]


def test_slices_for_browsers_without_webgl_have_their_grey_values_and_proportions(tmp_path):
    from PIL import Image

    voxels = np.zeros((1, 8, 8, 3), np.float32)
    voxels[0, :, :, 1], voxels[0, :, :, 2] = 50, 100
    scan = Scan(voxels, spacing=(1.0, 0.5, 1.0))
    files = viewer.draw_slices(scan, (0, 100), tmp_path / "slices")
    images = [np.asarray(Image.open(file)) for file in files]
    assert [int(image.mean()) for image in images] == [0, 127, 255]
    assert images[0].shape == (viewer.SLICE_PIXELS, viewer.SLICE_PIXELS // 2)


def test_facts_tell_nothing_about_the_patient(read, dicom_files, tmp_path):
    dataset = pydicom.dcmread(dicom_files / "693_J2KI.dcm")
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "SECRET-7", "19700101"
    dataset.save_as(tmp_path / "x.dcm")
    shown = json.dumps(read(tmp_path / "x.dcm").scans[0].about)
    assert "CT" in shown and not any(word in shown for word in ("Doe", "Jane", "SECRET", "1970"))
