"""Records of a data set that `radfm data build` finished: columns without scans, and scans one record at a time."""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from radfm.load_scan_radfm import ScanError, load_scan
from radfm.medmd.schema import COLUMNS, Record
from radfm.medmd.shards import add_hashes, read_columns, shard_files
from radfm.scan_radfm import Scan

from .items import BenchError

HELD_OUT = ("validation", "test")
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


def read_light(data: Path, *splits: str) -> Iterator[Record]:
    """The records of some splits without their scans (`images` is empty)."""
    for split in splits:
        for file in split_files(data, split):
            for row in read_columns(file, LIGHT_COLUMNS):
                yield Record.from_row({**row, "images": []})


def read_held_out(data: Path, split: str) -> Iterator[Record]:
    """The records of one of `HELD_OUT`, without their scans.

    Raises:
        BenchError: the split is another one, or has no record.
    """
    if split not in HELD_OUT:
        raise BenchError(f"split {split!r} is none of {', '.join(HELD_OUT)}.")
    if not split_files(data, split):
        held_out = [name for name in HELD_OUT if split_files(data, name)]
        remedy = f"; name the {held_out[0]} split with --split {held_out[0]}" if held_out else ""
        raise BenchError(f"{data}: has no {split} split, so there is nothing to ask{remedy}.")
    return read_light(data, split)


class ScanReader:
    """The scans of held-out records, by record id.

    Memory is that of two row groups. Scans of one file are best read in the order of `position`.

    Args:
        data: the folder of the data set.
    """

    def __init__(self, data: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._modalities: dict[str, str | None] = {}
        for file in (file for split in HELD_OUT for file in split_files(data, split)):
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
