"""Records of a data set that `radfm data build` finished: columns without scans, and scans one record at a time."""

import functools
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from radfm.load_scan_radfm import ScanError, load_scan
from radfm.medmd.schema import COLUMNS, Record
from radfm.medmd.shards import add_hashes, read_columns, shard_files
from radfm.scan_radfm import Scan

from .items import BenchError

LIGHT_COLUMNS = tuple(name for name in COLUMNS if name != "images")
KEPT_GROUPS = 2  # row groups of scans in memory: up to 64 MB each


def data_fingerprint(data: Path) -> str:
    """The logical hash of the data set's content (`medmd.shards.logical_hash`), from its manifest.

    Raises:
        BenchError: the folder has no manifest.
    """
    manifest = data / "manifest.json"
    if not manifest.is_file():
        raise BenchError(f"{data}: is no data set (no manifest.json); `radfm data build` makes one.")
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return add_hashes([file["logical_sum"] for file in files.values()])


def split_files(data: Path, split: str) -> list[Path]:
    """The Parquet files of a split; empty where there is none.

    Raises:
        DataError: the folder holds no data set.
    """
    return [file for file in shard_files(data) if file.name.startswith(f"{split}-")]


def read_light(data: Path, split: str) -> Iterator[Record]:
    """The records of a split without their scans (`images` is empty)."""
    for file in split_files(data, split):
        for row in read_columns(file, LIGHT_COLUMNS):
            yield Record.from_row({**row, "images": []})


def read_records(data: Path, ids: Collection[str], split: str = "test") -> Iterator[Record]:
    """The records with these ids, scans included, in the order of the files."""
    wanted = set(ids)
    for file in split_files(data, split):
        found = {row["id"] for row in read_columns(file, ("id",))} & wanted
        if found:
            yield from (Record.from_row(row) for row in read_columns(file, COLUMNS) if row["id"] in found)


class ScanReader:
    """The scans of the records of a split, by record id.

    Memory is that of two row groups. Scans of one file are best read in the order of `position`.

    Args:
        data: the folder of the data set.
        split: train, validation or test.
    """

    def __init__(self, data: Path, split: str = "test") -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._modalities: dict[str, str | None] = {}
        for file in split_files(data, split):
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, columns=["id", "modality"]).to_pylist()
                for number, row in enumerate(rows):
                    self._places[row["id"]] = (file, group, number)
                    self._modalities[row["id"]] = row["modality"]
        self.position = {record: number for number, record in enumerate(self._places)}

    def read(self, record: str, index: int) -> Scan:
        """Scan number `index` of a record.

        Raises:
            BenchError: it cannot be read; the message names the record.
        """
        file, group, number = self._places[record]
        content = _scans_of_group(file, group)[number][index]["bytes"]
        try:
            scan = load_scan(content)
        except ScanError as error:
            raise BenchError(f"{record}: scan {index + 1}: {error}") from error
        # NIfTI has no modality, and grey values of CT are windowed in HU.
        return replace(scan, modality="CT") if scan.is_volume and self._modalities[record] == "CT" else scan


@functools.lru_cache(maxsize=KEPT_GROUPS)
def _scans_of_group(file: Path, group: int) -> list[list[dict[str, bytes]]]:
    table = pq.ParquetFile(file).read_row_group(group, columns=["images"])
    scans: list[list[dict[str, bytes]]] = table.column("images").to_pylist()
    return scans
