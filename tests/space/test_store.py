"""The store of scans: one reading for one content, quotas, and what is left on the disk."""

import shutil
from types import SimpleNamespace

import pytest

import limits
from remote_code import AnswerError
from sessions import Session
from tasks import Tasks


def test_the_same_file_is_read_once(read, dicom_files):
    first, second = read(dicom_files / "MR_small.dcm"), read(dicom_files / "MR_small.dcm")
    assert first is second and first.holders == 2


def test_what_nobody_holds_goes_with_its_image_tokens(store, read, dicom_files):
    one = read(dicom_files / "MR_small.dcm")
    store.sweep(0)
    assert one.folder.exists()
    store.release(one)
    store.sweep(3600)
    assert one.folder.exists()
    store.sweep(0)
    assert not one.folder.exists() and read(dicom_files / "MR_small.dcm") is not one


def test_a_refused_file_leaves_nothing_once_it_is_released(store, read, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear colleague")
    refused = read(tmp_path / "letter.txt")
    assert "is no scan" in refused.refused[0]
    store.release(refused)
    assert not refused.folder.exists()


def test_the_longest_unused_goes_when_the_quota_is_full(store, read, dicom_files, monkeypatch):
    old, new = read(dicom_files / "MR_small.dcm"), read(dicom_files / "CT_small.dcm")
    for each in (old, new):
        store.release(each)
    monkeypatch.setattr(limits, "STORE_BYTES", old.bytes + new.bytes)
    read(dicom_files / "693_J2KI.dcm")
    assert not old.folder.exists() and new.folder.exists()


def test_a_quota_that_is_in_use_is_told(read, dicom_files, monkeypatch):
    held = read(dicom_files / "MR_small.dcm")
    monkeypatch.setattr(limits, "STORE_BYTES", held.bytes)
    with pytest.raises(AnswerError, match="disk of this Space is full"):
        read(dicom_files / "CT_small.dcm")


def test_a_full_disk_is_told(read, dicom_files, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=limits.DISK_RESERVE - 1))
    with pytest.raises(AnswerError, match="disk of this Space is full"):
        read(dicom_files / "CT_small.dcm")


def test_a_visitor_has_a_quota(store, dicom_files, tmp_path, monkeypatch):
    session = Session(tmp_path / "session", store, Tasks({}, []))
    list(session.read([dicom_files / "MR_small.dcm"]))
    monkeypatch.setattr(limits, "SESSION_BYTES", 1)
    with pytest.raises(AnswerError, match="start a new conversation"):
        next(session.read([dicom_files / "CT_small.dcm"]))
    monkeypatch.setattr(limits, "SESSION_BYTES", 1 << 30)
    monkeypatch.setattr(limits, "SESSION_SCANS", 1)
    with pytest.raises(AnswerError, match="holds 1 scans at most"):
        list(session.read([dicom_files / "CT_small.dcm"]))
    session.close()
    assert all(read.holders == 0 for read in store._reads.values()) and not session.folder.exists()


def test_slices_of_one_window_are_kept(store, read, dicom_files):
    scan = read(dicom_files / "CT_small.dcm").scans[0]
    for low, high in ((0, 100), (50, 80), (-10, 10)):
        assert len(store.draw(scan, low, high)) == 1
    assert [folder.name for folder in scan.folder.glob("slices-*")] == ["slices--10-10"]
