"""`load_scan` on real files: what it returns is right, or it says in one line why not."""

import base64
import gzip
import io
import os
import re
import subprocess
import sys
import threading
import warnings
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from radfm.load_scan_radfm import ScanError, list_series, list_volumes, load_scan
from radfm.scan_radfm import to_radiological_view

PYTHON_WORDS = re.compile(
    r"Traceback|NoneType|object (has no|is not)|invalid literal|\b[A-Z]\w*(Error|Exception)\b|<class|dtype"
)


def test_an_axial_ct_slice_in_hounsfield_units(dicom_files):
    scan = load_scan(dicom_files / "693_J2KI.dcm")
    dataset = pydicom.dcmread(dicom_files / "693_J2KI.dcm")
    wanted = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert (scan.modality, scan.voxels.shape, scan.is_volume) == ("CT", (1, 512, 512, 1), False)
    padding = dataset.pixel_array == dataset.PixelPaddingValue
    np.testing.assert_array_equal(scan.voxels[0, :, :, 0][~padding], wanted[~padding])
    assert (scan.voxels[0, :, :, 0][padding] == wanted[~padding].min()).all()
    assert scan.spacing[:2] == pytest.approx(list(map(float, dataset.PixelSpacing)))
    assert scan.windows == [(-10.0, 89.0)]


def test_a_series_in_a_zip_is_ordered_by_place_and_knows_where_it_lies(packs, tmp_path):
    scan = load_scan(packs / "dicom_series_ct.zip")
    with zipfile.ZipFile(packs / "dicom_series_ct.zip") as archive:
        files = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    files.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    assert scan.voxels.shape == (1, 512, 512, 20)
    for k in (0, 7, 19):
        wanted = files[k].pixel_array * float(files[k].RescaleSlope) + float(files[k].RescaleIntercept)
        np.testing.assert_array_equal(scan.voxels[0, :, :, k], wanted)
        left, back, up = files[k].ImagePositionPatient
        np.testing.assert_allclose(scan.affine @ [0, 0, k, 1], [-left, -back, up, 1], atol=1e-3)
    assert scan.spacing[2] == pytest.approx(2.0, abs=1e-3)
    assert not scan.warnings


def test_a_shuffled_folder_gives_the_same_volume(packs, tmp_path):
    with zipfile.ZipFile(packs / "dicom_series_mr.zip") as archive:
        names = archive.namelist()
        for i, name in enumerate(names):
            (tmp_path / f"{(i * 7) % len(names):03}.anything").write_bytes(archive.read(name))
    from_zip, from_folder = load_scan(packs / "dicom_series_mr.zip"), load_scan(tmp_path)
    np.testing.assert_array_equal(from_zip.voxels, from_folder.voxels)
    np.testing.assert_allclose(from_zip.affine, from_folder.affine)
    files = sorted(str(p) for p in tmp_path.iterdir())
    np.testing.assert_array_equal(load_scan(files).voxels, from_zip.voxels)
    assert "20 files" in list_series(tmp_path)[0]


def test_the_largest_of_several_series_is_read_and_the_others_named(packs, tmp_path):
    for pack in ("dicom_series_ct", "dicom_series_mr"):
        with zipfile.ZipFile(packs / f"{pack}.zip") as archive:
            for name in archive.namelist()[: 20 if pack.endswith("ct") else 5]:
                (tmp_path / f"{pack}{name.replace('/', '_')}").write_bytes(archive.read(name))
    scan = load_scan(tmp_path)
    assert scan.modality == "CT" and "401 anat-T1w (5 images)" in scan.warnings[-1]
    assert load_scan(tmp_path, series="anat-T1w").voxels.shape[-1] == 5
    assert load_scan(tmp_path, series=401).modality == "MR"
    with pytest.raises(ScanError, match=r"has no series '7', only 1 CT body 3 mm; 401 anat-T1w"):
        load_scan(tmp_path, series=7)


def changed_series(packs, tmp_path, change):
    """The CT series with one thing changed in each header, as a scanner could have written it."""
    with zipfile.ZipFile(packs / "dicom_series_ct.zip") as archive:
        files = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    files.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    for k, dataset in enumerate(files):
        if change(k, dataset) is not False:
            dataset.save_as(tmp_path / f"{k}.dcm")
    return tmp_path


def test_a_series_that_lacks_a_slice_is_refused_with_its_place_and_the_remedy(packs, tmp_path):
    with pytest.raises(ScanError, match=r"1 of 20 slices are missing \(at .*–.* mm\): .*allow_missing=True"):
        load_scan(changed_series(packs, tmp_path, lambda k, d: k != 9))


def test_a_missing_slice_is_filled_between_its_neighbours_and_told(packs, tmp_path):
    scan = load_scan(changed_series(packs, tmp_path, lambda k, d: k != 9), allow_missing=True)
    assert scan.voxels.shape[-1] == 20
    assert "1 slices are missing" in scan.warnings[0] and "resampled to every 2.00 mm" in scan.warnings[0]
    whole = load_scan(packs / "dicom_series_ct.zip")
    np.testing.assert_allclose(scan.voxels[..., 9], (whole.voxels[..., 8] + whole.voxels[..., 10]) / 2, atol=0.1)
    np.testing.assert_array_equal(scan.voxels[..., 12], whole.voxels[..., 12])


def test_missing_slices_one_after_another_are_filled_on_the_first_spacing(packs, tmp_path):
    scan = load_scan(changed_series(packs, tmp_path, lambda k, d: k not in (3, 5, 7, 8, 12, 16)), allow_missing=True)
    assert scan.voxels.shape[-1] == 20 and scan.spacing[2] == pytest.approx(2.0, abs=1e-3)
    assert "6 slices are missing" in scan.warnings[0]


def test_a_series_of_which_most_is_missing_is_refused(packs, tmp_path):
    with pytest.raises(ScanError, match="most would be made up"):
        load_scan(changed_series(packs, tmp_path, lambda k, d: k in (0, 1, 4, 9, 14, 19)), allow_missing=True)


def test_gantry_tilt_stands_in_the_affine_and_in_a_warning(packs, tmp_path):
    def tilt(k, dataset):
        dataset.ImagePositionPatient = [float(x) for x in np.add(dataset.ImagePositionPatient, [0, k * 0.5, 0])]

    scan = load_scan(changed_series(packs, tmp_path, tilt))
    assert "tilt of 14.0°" in scan.warnings[0]
    assert scan.affine[:3, 2] == pytest.approx([0, 0, 2.0], abs=1e-3)
    whole = load_scan(packs / "dicom_series_ct.zip")
    for k in (0, 6, 13):
        shifted = k * 0.5 / whole.spacing[0]
        row = 200 + round(shifted)
        step = np.abs(np.diff(whole.voxels[0, 180:260, 256, k])).max()
        assert abs(scan.voxels[0, row, 256, k] - whole.voxels[0, 200, 256, k]) <= step


def test_different_images_at_one_place_are_refused(packs, tmp_path):
    def halve(k, dataset):
        dataset.ImagePositionPatient = [0, 0, k // 2]

        del dataset.InstanceNumber

    with pytest.raises(ScanError, match="two different images lie at"):
        load_scan(changed_series(packs, tmp_path, halve))


def test_a_slice_that_came_twice_is_dropped_once(packs, tmp_path):
    changed_series(packs, tmp_path, lambda k, d: None)
    (tmp_path / "again.dcm").write_bytes((tmp_path / "5.dcm").read_bytes())
    scan = load_scan(tmp_path)
    assert scan.voxels.shape[-1] == 20 and "1 slices came twice" in scan.warnings[0]


def test_a_localizer_in_the_series_is_left_out_and_told(packs, tmp_path):
    def turn(k, dataset):
        if k == 0:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    scan = load_scan(changed_series(packs, tmp_path, turn))
    assert scan.voxels.shape[-1] == 19 and "volume= chooses another: 1 (sagittal" in scan.warnings[0]


def test_images_that_lost_their_places_keep_their_order(packs, tmp_path):
    def strip(k, dataset):
        dataset.SliceLocation = 100 - k
        del dataset.ImagePositionPatient

    scan = load_scan(changed_series(packs, tmp_path, strip))
    assert scan.affine is None and "order of SliceLocation" in scan.warnings[0]
    np.testing.assert_array_equal(scan.voxels[..., 0], load_scan(tmp_path / "19.dcm").voxels[..., 0])


def test_images_that_lost_their_order_too_are_refused(packs, tmp_path):
    def strip(k, dataset):
        dataset.SliceLocation = 0
        del dataset.ImagePositionPatient

    with pytest.raises(ScanError, match="do not say where they lie"):
        load_scan(changed_series(packs, tmp_path, strip))


def test_spacing_that_changes_on_the_way_is_made_even(packs, tmp_path):
    def stretch(k, dataset):
        dataset.ImagePositionPatient = [0, 0, k * 2.0 if k < 12 else 24 + (k - 12) * 5.0]

    scan = load_scan(changed_series(packs, tmp_path, stretch))
    assert "Slices lie 2.00 to 5.00 mm apart" in scan.warnings[0] and scan.spacing[2] == 2.0
    assert scan.voxels.shape[-1] == round((24 + 7 * 5.0) / 2) + 1


def test_echoes_in_one_series_are_volumes_to_choose_from(packs, tmp_path):
    def pair(k, dataset):
        dataset.EchoTime = 10 + 20 * (k % 2)
        dataset.ImagePositionPatient = [0, 0, k // 2 * 2.0]

    changed_series(packs, tmp_path, pair)
    first, second = load_scan(tmp_path), load_scan(tmp_path, volume=1)
    assert "2 volumes; volume 0 (EchoTime 10, 10 slices) was read" in first.warnings[0]
    assert "1 (EchoTime 30, 10 slices)" in first.warnings[0]
    np.testing.assert_array_equal(second.voxels[..., 3], load_scan(tmp_path / "7.dcm").voxels[..., 0])
    with pytest.raises(ScanError, match="volumes 0 to 1, and no volume 2"):
        load_scan(tmp_path, volume=2)


def test_monochrome1_is_turned_over_with_its_window(dicom_files):
    dataset = pydicom.dcmread(dicom_files / "693_J2KI.dcm")
    dataset.decompress()
    upright = load_scan(dataset)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    inverted = load_scan(dataset)
    order = np.argsort(upright.voxels, axis=None)
    assert (np.diff(inverted.voxels.flat[order]) <= 0).all()
    (low, high), (old_low, old_high) = inverted.windows[0], upright.windows[0]
    assert (high - low) == old_high - old_low
    share = (upright.voxels > old_high).mean()
    assert (inverted.voxels < low).mean() == share


def test_frames_of_ultrasound_follow_in_time_and_are_no_volume(dicom_files):
    scan = load_scan(dicom_files / "examples_ybr_color.dcm")
    assert scan.voxels.shape[0] == 3 and not scan.is_volume
    assert "Only frame 0 of 30" in scan.warnings[0] and "in time" in scan.warnings[0]


def test_nifti_keeps_its_affine_and_scaling_and_its_first_volume(nifti_files):
    scan, image = load_scan(nifti_files / "example4d.nii.gz"), nibabel.load(nifti_files / "example4d.nii.gz")
    np.testing.assert_array_equal(scan.voxels[0], image.get_fdata(dtype=np.float32)[..., 0])
    np.testing.assert_allclose(scan.affine, image.affine)
    assert scan.warnings == ["Only volume 0 of 2 was read, of shape (128, 96, 24, 2)."]
    from_bytes = load_scan((nifti_files / "example4d.nii.gz").read_bytes())
    np.testing.assert_array_equal(from_bytes.voxels, scan.voxels)


def test_a_nifti_with_air_and_bone_is_taken_for_ct(packs):
    with zipfile.ZipFile(packs / "ct_volumes.zip") as archive:
        content = archive.read("totalseg_ct.nii.gz")
    scan = load_scan(nibabel.Nifti1Image.from_bytes(gzip.decompress(content)))
    assert scan.modality == "CT" and "Taken for CT in HU" in scan.warnings[0]


def test_values_that_are_not_finite_are_replaced_and_counted():
    values = np.ones((4, 4, 4), np.float32) * 5
    values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
    scan = load_scan(nibabel.Nifti1Image(values, np.eye(4)))
    assert np.isfinite(scan.voxels).all() and "2 voxels without a finite value were set to 5" in scan.warnings[0]


@pytest.mark.parametrize("axes", ["LAS", "RPS", "PIR", "SLA", "ASL"])
def test_a_volume_stored_another_way_hangs_the_same(axes, nifti_files):
    image = nibabel.load(nifti_files / "anatomical.nii")
    wanted = to_radiological_view(load_scan(image))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    hung = to_radiological_view(load_scan(image.as_reoriented(turn)))
    np.testing.assert_array_equal(hung.voxels, wanted.voxels)
    np.testing.assert_allclose(hung.affine, wanted.affine, atol=1e-4)
    assert nibabel.aff2axcodes(hung.affine) == ("P", "L", "S")


def test_arrays_pictures_tensors_and_scans():
    grey = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    for source in (grey, torch.from_numpy(grey), Image.fromarray(grey), load_scan(grey)):
        scan = load_scan(source)
        np.testing.assert_array_equal(scan.voxels[0, :, :, 0], grey)
        assert scan.windows == [(0.0, 255.0)]
    colour = np.stack([grey, grey // 2, grey // 3], -1)
    assert load_scan(colour).voxels.shape == load_scan(Image.fromarray(colour)).voxels.shape == (3, 20, 30, 1)
    assert load_scan(Image.fromarray(np.stack([grey] * 3, -1))).voxels.shape == (1, 20, 30, 1)
    assert load_scan(np.zeros((20, 30, 12), np.float32)).voxels.shape == (1, 20, 30, 12)


@pytest.mark.parametrize("kind", ["a.png", "a.tif", "a.webp", "a.bmp"])
def test_pictures_of_eight_bits_and_three_colours(kind, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / kind, lossless=True)
    scan = load_scan(tmp_path / kind)
    np.testing.assert_array_equal(scan.voxels[..., 0], colours.transpose(2, 0, 1))
    assert scan.windows == [(0.0, 255.0)]


def test_pictures_of_sixteen_bits_and_of_several_pages(tmp_path):
    values = np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000
    Image.fromarray(values).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(values[::-1])])
    scan = load_scan(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.voxels[0, ..., 0], values)
    assert scan.warnings == ["Only page 0 of 2 was read (volume chooses, from 0)."]
    assert len(list_volumes(tmp_path / "a.tif")) == 2
    np.testing.assert_array_equal(load_scan(tmp_path / "a.tif", volume=1).voxels[0, ..., 0], values[::-1])
    with pytest.raises(ScanError, match="volumes 0 to 1, and no volume 2"):
        load_scan(tmp_path / "a.tif", volume=2)


def test_npy_and_pictures_from_files(tmp_path):
    array = np.arange(600, dtype=np.float32).reshape(20, 30)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    Image.fromarray(array.astype(np.uint16)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.npz", "a.png"):
        np.testing.assert_array_equal(load_scan(tmp_path / name).voxels[0, :, :, 0], array)
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ScanError, match=r"b\.npy: is no readable NumPy array"):
        load_scan(tmp_path / "b.npy")


def made(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def test_what_is_no_scan_is_refused_in_one_line_that_names_it(tmp_path, dicom_files):
    dicom = (dicom_files / "CT_small.dcm").read_bytes()
    empty = tmp_path / "empty"
    empty.mkdir()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", b"\0" * (1 << 24))
    bad = {
        "absent.dcm": (tmp_path / "absent.dcm", "no such file"),
        "empty": (empty, "holds no scan"),
        "text.dcm": (made(tmp_path, "text.dcm", b"this is no scan\n" * 100), "no scan that can be read"),
        "cut.dcm": (made(tmp_path, "cut.dcm", dicom[:1500]), "cut.dcm"),
        "broken.png": (made(tmp_path, "broken.png", b"\x89PNG\r\n\x1a\n" + b"x" * 99), "damaged"),
        "broken.nii.gz": (made(tmp_path, "broken.nii.gz", b"\x1f\x8bnothing"), "compressed with gzip and damaged"),
        "bomb.zip": (made(tmp_path, "bomb.zip", bomb.getvalue()), "no scan that can be read"),
    }
    for name, (path, sentence) in bad.items():
        with pytest.raises(ScanError, match=sentence) as refused:
            load_scan(path, max_bytes=1 << 23)
        assert name in str(refused.value) and "\n" not in str(refused.value)
        assert not PYTHON_WORDS.search(str(refused.value))


FOREIGN = {
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "is a 7z archive, .* unpack it"),
    "rar": (b"Rar!\x1a\x07\x01\0" + bytes(99), "is a RAR archive, .* unpack it"),
    "bz2": (b"BZh91AY&SY" + bytes(99), "bzip2, .* unpack it"),
    "xz": (b"\xfd7zXZ\0" + bytes(99), "xz, .* unpack it"),
    "pdf": (b"%PDF-1.7" + bytes(99), "is a PDF document"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "empty": (b"", "is empty"),
    "text": (b"this is no scan\n" * 100, "none of DICOM, NIfTI"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_a_known_kind_that_is_not_read_says_what_it_is(kind, tmp_path):
    content, sentence = FOREIGN[kind]
    with pytest.raises(ScanError, match=sentence) as refused:
        load_scan(made(tmp_path, f"scan.{kind}", content))
    assert str(refused.value).startswith(str(tmp_path / f"scan.{kind}"))


def test_a_name_with_a_line_break_still_gives_one_line(tmp_path):
    with pytest.raises(ScanError) as refused:
        load_scan(made(tmp_path, "two\nlines.dcm", b"nothing"))
    assert "two lines.dcm" in str(refused.value) and "\n" not in str(refused.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ScanError, match="no regular file"):
        load_scan(tmp_path / "pipe")


def test_missing_memory_is_said_in_a_sentence_of_its_own(nifti_files):
    """A process that may have 100 MB more than it has already reads a volume of 1 GB, which `max_bytes` allows."""
    code = (
        "import resource, nibabel, numpy as np\n"
        "from radfm.load_scan_radfm import ScanError, load_scan\n"
        f"load_scan({str(nifti_files / 'anatomical.nii')!r})\n"
        "image = nibabel.Nifti1Image(np.broadcast_to(np.int16(1), (1024, 1024, 256)), np.eye(4))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)\n"
        "try: load_scan(image)\n"
        "except ScanError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the image: does not fit into the free memory" in run.stdout, run.stderr


@pytest.mark.parametrize("shape", [(3, 20, 30), (20, 30, 4), (20, 30, 3)])
def test_an_array_that_may_be_a_colour_image_is_a_volume_with_a_warning(shape):
    scan = load_scan(np.zeros(shape, np.float32))
    assert scan.voxels.shape == (1, *shape) and "was read as a volume" in scan.warnings[0]
    assert f"{shape[-1]} slices" in scan.warnings[0]


def test_a_choice_that_a_source_does_not_have_is_refused(nifti_files, tmp_path):
    np.save(tmp_path / "a.npy", np.eye(5))
    for source in (np.eye(5), tmp_path / "a.npy", nifti_files / "anatomical.nii"):
        with pytest.raises(ScanError, match="holds one volume, and no volume 1"):
            load_scan(source, volume=1)
        assert load_scan(source, volume=0).voxels.size
    with pytest.raises(ScanError, match="is no DICOM, so it has no series 'T1' to choose"):
        load_scan(nifti_files / "anatomical.nii", series="T1")


def test_an_array_of_many_slices_has_no_warning():
    assert load_scan(np.zeros((20, 30, 12), np.float32)).warnings == []
    assert load_scan(np.zeros((20, 30, 3), np.uint8)).warnings == []


def test_many_threads_read_at_once_and_change_nothing_of_the_process(nifti_files, dicom_files, tmp_path):
    Image.fromarray(np.eye(50, dtype=np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.eye(50))
    mended = bytearray(gzip.decompress((nifti_files / "example4d.nii.gz").read_bytes()))
    mended[252:254] = (1024).to_bytes(2, "little")  # an unknown qform_code, of which nibabel would warn
    sources = [bytes(mended), nifti_files / "anatomical.nii", tmp_path / "a.png", tmp_path / "a.npy"]
    alone = [load_scan(source) for source in sources]
    filters, level = list(warnings.filters), nibabel.imageglobals.logger.level
    seen, failed = [], []

    def read(number):
        try:
            for turn in range(4):
                index = (number + turn) % len(sources)
                scan = load_scan(sources[index])
                assert np.array_equal(scan.voxels, alone[index].voxels) and scan.warnings == alone[index].warnings
                seen.append((list(warnings.filters), nibabel.imageglobals.logger.level))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(seen) == 32 and all(state == (filters, level) for state in seen)
    assert list(warnings.filters) == filters and nibabel.imageglobals.logger.level == level


def test_readers_are_imported_without_torch_and_nibabel():
    code = "import sys, radfm.load_scan_radfm; print({'torch', 'nibabel', 'SimpleITK'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


MISSING = {
    "nibabel": ("anatomical.nii", "needs nibabel: pip install nibabel"),
    "PIL": ("a.png", "needs Pillow: pip install pillow"),
    "SimpleITK": ("a.nrrd", "needs SimpleITK: pip install SimpleITK"),
}


@pytest.mark.parametrize("library", MISSING)
def test_a_library_that_is_not_installed_is_named_with_its_remedy(library, nifti_files, tmp_path, monkeypatch):
    name, sentence = MISSING[library]
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n12345678")
    (tmp_path / "anatomical.nii").write_bytes((nifti_files / "anatomical.nii").read_bytes())
    for module in [module for module in sys.modules if module.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # what Python does itself for a module that cannot be imported
    with pytest.raises(ScanError, match=sentence):
        load_scan(tmp_path / name)


def test_more_voxels_than_allowed_are_refused_before_they_are_read(dicom_files, nifti_files):
    for path in (dicom_files / "693_J2KI.dcm", nifti_files / "example4d.nii.gz"):
        with pytest.raises(ScanError, match="GB"):
            load_scan(path, max_bytes=1000)


def test_a_scan_shows_nothing_of_the_patient(dicom_files):
    scan = load_scan(dicom_files / "CT_small.dcm")
    dataset = pydicom.dcmread(dicom_files / "CT_small.dcm")
    for secret in (str(dataset.PatientName), dataset.PatientID, dataset.StudyDate):
        assert secret not in repr(scan) and secret not in str(vars(scan))


def test_from_dicom_to_nifti_and_back_nothing_moves(packs, tmp_path):
    scan = load_scan(packs / "dicom_series_mr.zip")
    nibabel.save(nibabel.Nifti1Image(scan.voxels[0], scan.affine), tmp_path / "scan.nii.gz")
    again = load_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(again.voxels, scan.voxels)
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-4)
    np.testing.assert_allclose(again.spacing, scan.spacing, atol=1e-4)
    np.testing.assert_array_equal(to_radiological_view(again).voxels, to_radiological_view(scan).voxels)


def test_a_damaged_numpy_header_ends_in_a_sentence():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(24, dtype=np.float32).reshape(4, 6))
    content = bytearray(buffer.getvalue())
    for at in range(6, 100):
        damaged = content.copy()
        damaged[at] = ord("{")
        try:
            assert load_scan(bytes(damaged)).voxels.size
        except ScanError as error:
            assert "no readable NumPy array" in str(error) or "holds no grey values" in str(error) or "shape" in str(error)


def test_a_data_url_is_read_and_never_taken_for_a_path(dicom_files, tmp_path, monkeypatch):
    raw = (dicom_files / "CT_small.dcm").read_bytes()
    for kind in ("application/dicom", ""):
        scan = load_scan(f"data:{kind};base64,{base64.b64encode(raw).decode()}")
        assert np.array_equal(scan.voxels, load_scan(raw).voxels)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data:,").write_bytes(raw)
    for url in ("data:,", "data:;base64,?", "data:;base64," + "A" * 5000):
        with pytest.raises(ScanError) as refused:
            load_scan(url)
        assert str(refused.value).startswith("the data URL: ") and "AAAA" not in str(refused.value)
    with pytest.raises(ScanError, match="more than"):
        load_scan("data:;base64," + "A" * 5000, max_bytes=1000)
