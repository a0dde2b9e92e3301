"""Folders and archives: a zip or tar is read as the folder it was made of, within bounds; a bad file costs itself alone."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from radfm.load_scan_radfm import ScanError, list_series, list_volumes, load_scan, recognise

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
VALUES = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def nifti() -> bytes:
    return nibabel.Nifti1Image(VALUES, AFFINE).to_bytes()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def slices(dicom_files, count=4) -> dict[str, bytes]:
    """A CT series of a few slices at 5 mm."""
    files = {}
    for k in range(count):
        dataset = pydicom.dcmread(dicom_files / "CT_small.dcm")
        dataset.ImagePositionPatient = [0, 0, 5.0 * k]
        dataset.SOPInstanceUID = f"1.2.3.{k}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = k + 1
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        files[f"study/series/IM{k}"] = buffer.getvalue()
    return files


def write_folder(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(files, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(files, path, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


FORMS = {
    "folder": lambda files, tmp: write_folder(files, tmp / "scan"),
    "zip": lambda files, tmp: write_zip(files, tmp / "scan.zip"),
    "tar": lambda files, tmp: write_tar(files, tmp / "scan.tar"),
    "tar.gz": lambda files, tmp: write_tar(files, tmp / "scan.tar.gz", "w:gz"),
    "tgz by another name": lambda files, tmp: write_tar(files, tmp / "scan.bin", "w:gz"),
    "zip as bytes": lambda files, tmp: write_zip(files, tmp / "scan.zip").read_bytes(),
    "tar as bytes": lambda files, tmp: write_tar(files, tmp / "scan.tar").read_bytes(),
}
# What a file manager, a scanner's export and a dataset put beside scans.
BESIDE = {
    "__MACOSX/study/._IM0": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(99),
    "study/._IM1": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(99),
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(99),
    "study/Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(99),
    "README": b"Read me.\n",
    "study/scan.json": json.dumps({"EchoTime": 0.03}).encode(),
    "scan.bvec": b"0 0 1\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_series_is_the_same_in_every_form_with_or_without_what_lies_beside_it(form, dicom_files, tmp_path):
    files = slices(dicom_files)
    wanted = load_scan(write_folder(files, tmp_path / "wanted"))
    scan = load_scan(FORMS[form](files | BESIDE, tmp_path))
    assert scan.voxels.shape[-1] == 4 and scan.warnings == wanted.warnings
    np.testing.assert_array_equal(scan.voxels, wanted.voxels)
    np.testing.assert_array_equal(scan.affine, wanted.affine)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.nii", "deep/er/a.nii.gz", "a.dat"])
def test_a_nifti_with_its_sidecar_is_read_in_every_form(form, name, tmp_path):
    content = gzip.compress(nifti()) if name.endswith("gz") else nifti()
    scan = load_scan(FORMS[form]({name: content} | BESIDE, tmp_path))
    np.testing.assert_array_equal(scan.voxels[0], VALUES)
    assert scan.warnings == []


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_read_in_every_form(form, tmp_path):
    scan = load_scan(FORMS[form]({"pictures/a.png": picture(), "notes.txt": b"a"}, tmp_path))
    assert scan.voxels.shape == (1, 9, 9, 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_of_header_and_voxels_is_read_in_every_form(form, tmp_path):
    nibabel.save(nibabel.Nifti1Pair(VALUES, AFFINE), tmp_path / "a.img")
    files = {name: (tmp_path / name).read_bytes() for name in ("a.hdr", "a.img")}
    scan = load_scan(FORMS[form](files, tmp_path))
    np.testing.assert_array_equal(scan.voxels[0], VALUES)
    assert scan.warnings == []


@pytest.mark.parametrize("form", FORMS)
def test_one_unreadable_and_one_foreign_file_are_named_and_cost_nothing_else(form, dicom_files, tmp_path):
    files = slices(dicom_files)
    more = {
        "study/broken.dcm": b"\x08\0\x05\0CS\x0a\0" + bytes(range(256)) * 4,
        "study/viewer.exe": b"MZ\x90\0" + bytes(500),
        "study/inner.zip": b"PK\3\4" + bytes(100),
    }
    scan = load_scan(FORMS[form](files | more, tmp_path))
    assert scan.voxels.shape[-1] == 4
    said = "\n".join(scan.warnings)
    assert "broken.dcm" in said and "viewer.exe" in said and "inner.zip" in said


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_beside_a_series_or_a_volume_is_named(form, dicom_files, tmp_path):
    series = load_scan(FORMS[form](slices(dicom_files) | {"preview.png": picture()}, tmp_path))
    assert series.voxels.shape[-1] == 4 and "preview.png" in series.warnings[-1]
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    volume = load_scan(FORMS[form]({"a.nii": nifti(), "preview.png": picture()}, tmp_path))
    assert volume.voxels.shape == (1, 4, 5, 6) and "preview.png besides it" in volume.warnings[-1]


@pytest.mark.parametrize("form", FORMS)
def test_several_scans_without_a_series_are_refused_and_named(form, tmp_path):
    with pytest.raises(ScanError, match=r"holds 2 scans and no DICOM series \(a\.nii, b\.nii\): name one"):
        load_scan(FORMS[form]({"a.nii": nifti(), "b.nii": nifti()}, tmp_path))


@pytest.mark.parametrize("form", FORMS)
def test_a_source_without_a_scan_says_what_it_holds(form, tmp_path):
    with pytest.raises(ScanError, match="holds no scan"):
        load_scan(FORMS[form]({"README": b"a", "b.json": b"{}"}, tmp_path))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(ScanError, match=r"holds no scan but an archive \(inner\.zip\): unpack it"):
        load_scan(FORMS[form]({"inner.zip": write_zip({"a.nii": nifti()}, tmp_path / "i").read_bytes()}, tmp_path))


def test_gzipped_dicom_alone_and_in_a_folder(dicom_files, tmp_path):
    content = (dicom_files / "CT_small.dcm").read_bytes()
    (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(content))
    wanted = load_scan(dicom_files / "CT_small.dcm")
    np.testing.assert_array_equal(load_scan(tmp_path / "a.dcm.gz").voxels, wanted.voxels)
    packed = {name: gzip.compress(content) for name, content in slices(dicom_files).items()}
    assert load_scan(write_folder(packed, tmp_path / "series")).voxels.shape[-1] == 4
    with pytest.raises(ScanError, match=r"a\.dcm\.gz: unpacks to more than 0\.00001 GB|1e-05 GB"):
        load_scan(tmp_path / "a.dcm.gz", max_bytes=10_000)


def test_gzipped_files_that_unpack_to_too_much_together_are_refused(tmp_path):
    bomb = gzip.compress(bytes(128) + b"DICM" + bytes(1 << 20))
    for form in ("folder", "zip"):
        with pytest.raises(ScanError, match="unpacks to more than"):
            load_scan(FORMS[form]({f"{k}.dcm": bomb for k in range(8)}, tmp_path), max_bytes=1 << 22)


def test_a_damaged_gzip_member_is_named_and_costs_nothing_else(dicom_files, tmp_path):
    damaged = gzip.compress(np.random.default_rng(0).bytes(20000))
    damaged = gzip.compress((dicom_files / "CT_small.dcm").read_bytes())[:-3000] + damaged[:100]
    scan = load_scan(write_folder(slices(dicom_files) | {"study/damaged.gz": damaged}, tmp_path))
    assert scan.voxels.shape[-1] == 4 and "damaged.gz cannot be read (the gzip stream is damaged" in scan.warnings[0]


def test_a_zip_and_text_in_gzip(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(write_zip({"a.nii": nifti()}, tmp_path / "a.zip").read_bytes()))
    np.testing.assert_array_equal(load_scan(tmp_path / "a.gz").voxels[0], VALUES)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"this is no scan"))
    with pytest.raises(ScanError, match=r"b\.gz: is no scan that can be read"):
        load_scan(tmp_path / "b.gz")


def test_a_dicomdir_stands_for_its_folder(dicom_files, tmp_path):
    write_folder(slices(dicom_files), tmp_path)
    shutil.copy(dicom_files / "dicomdirtests" / "DICOMDIR", tmp_path / "index")
    assert load_scan(tmp_path / "index").voxels.shape[-1] == 4
    assert load_scan(tmp_path).voxels.shape[-1] == 4
    with pytest.raises(ScanError, match="is a DICOMDIR, an index of other files: give the folder"):
        load_scan((tmp_path / "index").read_bytes())


def test_series_and_volumes_of_an_archive_are_listed_as_those_of_the_folder(dicom_files, tmp_path):
    files = slices(dicom_files) | BESIDE
    folder = write_folder(files, tmp_path / "scan")
    for source in (write_zip(files, tmp_path / "scan.zip"), write_tar(files, tmp_path / "scan.tar")):
        assert list_series(source) == list_series(folder)
        assert list_volumes(source) == list_volumes(folder)
    assert list_volumes(write_zip({"a.nii": nifti()}, tmp_path / "n.zip")) == ["0 · 4 × 5 × 6"]
    with pytest.raises(ScanError, match="holds no DICOM series"):
        list_series(tmp_path / "n.zip")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
def test_archives_that_unpack_to_more_than_allowed_are_refused(form, tmp_path):
    dicom = bytes(128) + b"DICM" + bytes(1 << 24)
    with pytest.raises(ScanError, match="unpacks to more than"):
        load_scan(FORMS[form]({"a.dcm": dicom, "b.dcm": dicom}, tmp_path), max_bytes=1 << 22)


def test_a_gzip_bomb_in_a_header_of_tar_is_refused(tmp_path):
    """tarfile reads an extended header whole, however long it says it is."""
    entry = tarfile.TarInfo("a")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 26
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 26)))
    with pytest.raises(ScanError, match="unpacks to more than"):
        load_scan(tmp_path / "bomb.tar.gz", max_bytes=1 << 22)


def test_no_path_climbs_out_and_no_link_is_followed(dicom_files, tmp_path):
    secret = tmp_path / "secret.nii"
    secret.write_bytes(nifti())
    inside = tmp_path / "inside"
    inside.mkdir()
    with tarfile.open(inside / "a.tar", "w") as archive:
        for name, kind, target in (("a.nii", tarfile.SYMTYPE, str(secret)), ("b.nii", tarfile.LNKTYPE, "../secret.nii"),
                                   ("c", tarfile.CHRTYPE, ""), ("d", tarfile.FIFOTYPE, "")):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    with pytest.raises(ScanError, match="holds no scan"):
        load_scan(inside / "a.tar")
    before = sorted(tmp_path.rglob("*"))
    for path in (
        write_zip({"../../escape.nii": nifti()}, inside / "b.zip"),
        write_tar({"/escape.nii": nifti()}, inside / "c.tar"),
    ):
        np.testing.assert_array_equal(load_scan(path).voxels[0], VALUES)
    assert sorted(set(tmp_path.rglob("*")) - {inside / "b.zip", inside / "c.tar"}) == before


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_is_refused_in_a_sentence(form, dicom_files, tmp_path):
    path = FORMS[form](slices(dicom_files), tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ScanError, match=rf"{path.name}: the (zip|tar) archive is damaged or cut short"):
        load_scan(path)


def test_an_encrypted_zip_says_so(tmp_path):
    content = bytearray(write_zip({"a.nii": nifti()}, tmp_path / "a.zip").read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(mark) + offset] |= 1
    with pytest.raises(ScanError, match="the zip archive is encrypted; unpack it with its password"):
        load_scan(bytes(content))


def test_a_damaged_member_of_a_zip_is_named_and_left_out(dicom_files, tmp_path):
    path = write_zip(
        slices(dicom_files) | {"study/damaged.dcm": bytes(128) + b"DICM" + bytes(range(256)) * 90}, tmp_path / "a.zip"
    )
    content = bytearray(path.read_bytes())
    start = content.find(b"study/damaged.dcm")
    content[start + 40 : start + 60] = bytes(20)
    scan = load_scan(bytes(content))
    assert scan.voxels.shape[-1] == 4 and "damaged.dcm is damaged" in scan.warnings[0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}", fullmatch=True), st.binary(max_size=400), max_size=6))
@example({"a": b"CDF\x01"})
def test_whatever_else_an_archive_holds_the_volume_is_read(tmp_path_factory, files):
    assume(not any(recognise(content) for content in files.values()))  # a second scan is a question for the user
    tmp_path = tmp_path_factory.mktemp("any")
    taken = {name for name in files if any(other.startswith(f"{name}/") for other in files)}
    files = {name: content for name, content in files.items() if name not in taken} | {"Volume/scan.nii": nifti()}
    folder, zipped = load_scan(write_folder(files, tmp_path / "f")), load_scan(write_zip(files, tmp_path / "z"))
    np.testing.assert_array_equal(folder.voxels[0], VALUES)
    assert folder.warnings == zipped.warnings and np.array_equal(folder.voxels, zipped.voxels)
