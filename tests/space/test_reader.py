"""Reading in the child process: the same scan as here, in a limited time and memory, and a sentence whatever happens."""

import zipfile

import numpy as np
import pytest

import limits
from radfm.load_scan_radfm import load_scan
from reader_process import Reader, ReaderModule

# A stand-in for the model's code for scans, whose reader does something bad.
BAD_READER = """
import os, time
import numpy as np
class ScanError(ValueError): pass
def load_scan(source, **options):
    {body}
def to_radiological_view(scan): return scan
class Processor:
    @classmethod
    def from_dict(cls, settings): return cls()
"""


def bad_reader(folder, body: str) -> Reader:
    (folder / "bad_reader.py").write_text(BAD_READER.format(body=body))
    return Reader(lambda: ReaderModule(str(folder), "bad_reader", "bad_reader", "bad_reader", "Processor", {}))


def test_a_series_is_read_as_here(read, series_zips):
    scan = read(series_zips / "dicom_series_ct.zip").scans[0]
    here = load_scan(series_zips / "dicom_series_ct.zip")
    assert np.array_equal(np.load(scan.folder / "voxels.npy"), here.voxels)
    assert np.allclose(scan.about["affine"], here.affine)
    assert (scan.about["modality"], tuple(scan.about["spacing"])) == (here.modality, here.spacing)


def test_the_model_gets_the_pixel_values_of_its_own_processor(read, repository, dicom_files):
    scan = read(dicom_files / "693_J2KI.dcm").scans[0]
    here = repository.processor.image_processor([str(dicom_files / "693_J2KI.dcm")])["pixel_values"][0]
    assert np.array_equal(np.load(scan.folder / "pixel_values.npy"), here.numpy())


def test_dropped_files_are_grouped_by_series(read, dicom_files, nifti_files, series_zips, tmp_path):
    with zipfile.ZipFile(series_zips / "dicom_series_ct.zip") as archive:
        archive.extractall(tmp_path / "ct")
    files = sorted(path for path in (tmp_path / "ct").rglob("*") if path.is_file())
    scans = read(*files, dicom_files / "693_J2KI.dcm", nifti_files / "anatomical.nii").scans
    assert sorted(scan.about["shape"][-1] for scan in scans) == [1, 20, 25]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("os.abort()", "is damaged in a way that its decoder did not survive"),
        ("os.kill(os.getpid(), 9)", "too much memory"),
        ("while True: time.sleep(60)", "took longer than 2 seconds"),
        ("while True: pass", "took longer than 2 seconds"),
        ("return bytearray(1 << 40)", "needs more memory"),
        ("np.ones(1 << 33, np.uint8)", "needs more memory"),
        ("raise OSError(28, 'No space left on device')", "the disk of this Space is full"),
        ("raise ScanError(f'{source}: is no scan.')", "x.dcm: is no scan."),
        ("raise KeyError('Doe^Jane')", "reading failed (KeyError)"),
    ],
)
def test_whatever_a_decoder_does_there_is_a_sentence(body, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("RADFM_READ_SECONDS", "2")
    monkeypatch.setattr(limits, "READ_SECONDS", 2)
    file = tmp_path / "x.dcm"
    file.write_bytes(b"x")
    reader = bad_reader(tmp_path, body)
    job = {"read": {"files": [str(file)], "folder": str(tmp_path / "out")}}
    for _ in range(2):  # the second job shows that the server lived on
        refused = [event["refused"] for event in reader.run(job, "x.dcm")]
        assert sentence in refused[0] and str(tmp_path) not in refused[0] and "Doe" not in refused[0]
    reader.close()


def test_what_nobody_waits_for_leaves_no_events_behind(reader, dicom_files, tmp_path):
    job = {"read": {"files": [str(dicom_files / "693_J2KI.dcm")], "folder": str(tmp_path / "one")}}
    first = reader.run(job, "one")
    next(first)
    first.close()
    other = {"read": {"files": [str(dicom_files / "MR_small.dcm")], "folder": str(tmp_path / "two")}}
    assert {event["scan"]["name"] for event in reader.run(other, "two")} == {"MR_small.dcm"}


def test_the_child_shows_its_standard_error_to_developers_alone(tmp_path, capfd, monkeypatch):
    (tmp_path / "x.dcm").write_bytes(b"x")
    job = {"read": {"files": [str(tmp_path / "x.dcm")], "folder": str(tmp_path / "out")}}
    for debug in (False, True):
        monkeypatch.setattr(limits, "DEBUG", debug)
        reader = bad_reader(tmp_path, "os.write(2, b'Doe^Jane'); os.abort()")
        list(reader.run(job, "x.dcm"))
        reader.close()
        assert ("Doe^Jane" in capfd.readouterr().err) == debug


def test_series_of_a_zip_can_be_chosen(read, series_zips, tmp_path):
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as both:
        for name in ("dicom_series_ct.zip", "dicom_series_mr.zip"):
            with zipfile.ZipFile(series_zips / name) as pack:
                for member in pack.namelist():
                    both.writestr(f"{name}/{member}", pack.read(member))
    scan = read(tmp_path / "both.zip").scans[0]
    choices = scan.about["series_choices"]
    assert len(choices) == 2
    modalities = {read(tmp_path / "both.zip", series=choice["value"]).scans[0].about["modality"] for choice in choices}
    assert modalities == {"CT", "MR"}


def test_a_large_volume_is_seen_before_it_is_complete(store, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1000, (200, 200, 64)).astype(np.int16)
    np.save(tmp_path / "large.npy", voxels)
    seen = [
        (read.scans[0].complete, (read.scans[0].folder / "coarse.nii").exists())
        for read in store.read([tmp_path / "large.npy"])
    ]
    assert seen[0] == (False, True) and seen[-1][0]
