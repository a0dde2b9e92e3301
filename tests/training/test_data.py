"""Rows of a data set reach the training from the folder that the recipe names."""

import shutil

import pyarrow.parquet as pq
import pytest

from radfm.medmd.schema import DataError
from radfm.training.data import load_rows


def test_two_folders_of_one_name_are_two_data_sets(data, mixed_data):
    """`datasets` caches a folder by its name: the second `built` would have the rows of the first."""
    assert data.name == mixed_data.name
    counts = [len(load_rows(str(folder), "train")) for folder in (data, mixed_data)]
    stored = [
        sum(pq.read_metadata(file).num_rows for file in folder.glob("?d/train-*.parquet")) for folder in (data, mixed_data)
    ]
    assert counts == stored and stored[1] == stored[0] + 4


def test_scans_are_files_that_are_not_decoded(data):
    rows = load_rows(str(data), "train")
    assert {scan["bytes"][:4] for row in rows for scan in row["images"]} <= {b"\x89PNG", b"\x1f\x8b\x08\x00"}


def test_a_folder_without_data_is_named(tmp_path, data):
    with pytest.raises(DataError, match="is no data set"):
        load_rows(str(tmp_path), "train")
    shutil.copy(data / "README.md", tmp_path)
    with pytest.raises(DataError, match="has no rows in the split test"):
        load_rows(str(tmp_path), "test")
