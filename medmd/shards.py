"""Records ↔ Parquet files: the one writer, and readers that take only the columns that they need."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .schema import COLUMNS, DataError, Record, features

# Rows of a row group, which is what a reader holds at once: images by the hundred, volumes one by one.
GROUP_ROWS = {"2d": 100, "3d": 1}
GROUP_BYTES = 64 << 20
SCAN_COLUMN = "images.list.element.bytes"
_MODULUS = 1 << 256


class ShardWriter:
    """Writes one Parquet file: to `NAME.tmp` first, which `close` renames, so that a file that is there is whole.

    The bytes depend on the records and on pyarrow's version. Scans are stored uncompressed, because they are compressed
    already, and images are chunked by content, so that the Hub stores only once what two versions share.

    Args:
        path: the file to write.
        config: 2d or 3d.
    """

    def __init__(self, path: Path, config: str) -> None:
        self.path, self.config = path, config
        self.rows = 0
        self.logical_sum = 0
        self._temporary = path.with_name(path.name + ".tmp")
        self._schema = features(config).arrow_schema
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        text_columns = [name for name in _leaf_columns(self._schema) if name != SCAN_COLUMN]
        self._writer = pq.ParquetWriter(
            self._temporary,
            self._schema,
            compression=dict.fromkeys(text_columns, "zstd") | {SCAN_COLUMN: "none"},
            use_dictionary=["source", "task", "licence", "split"],
            write_statistics=["id", "source", "task", "split", "group"],
            write_page_index=True,
            use_content_defined_chunking=config == "2d",
        )

    def add(self, record: Record) -> None:
        row = record.to_row()
        self.logical_sum = (self.logical_sum + logical_hash(row)) % _MODULUS
        row["extra"] = canonical_json(row["extra"])
        self._group.append(row)
        self._group_bytes += sum(len(scan.bytes) for scan in record.images)
        self.rows += 1
        if len(self._group) >= GROUP_ROWS[self.config] or self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> dict[str, Any]:
        """Finish the file; its rows, size, SHA-256, and the sum of its rows' logical hashes."""
        self._write_group()
        self._writer.close()
        os.replace(self._temporary, self.path)
        return {
            "rows": self.rows,
            "bytes": self.path.stat().st_size,
            "sha256": file_sha256(self.path),
            "logical_sum": f"{self.logical_sum:064x}",
        }

    def abort(self) -> None:
        """Leave nothing behind."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _write_group(self) -> None:
        if self._group:
            arrays = [
                pa.array([row[column.name] for row in self._group], column.type.storage_type).cast(column.type)
                if isinstance(column.type, pa.ExtensionType | pa.BaseExtensionType)
                else pa.array([row[column.name] for row in self._group], column.type)
                for column in self._schema
            ]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(self._group))
        self._group, self._group_bytes = [], 0


def _leaf_columns(schema: pa.Schema) -> list[str]:
    """The names that Parquet gives the columns of a nested schema."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(i).path for i in range(len(parquet))]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks, the same text for the same content."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def logical_hash(row: dict[str, Any]) -> int:
    """SHA-256 of a row's content as an integer: of all columns but the scans' files, for which `image_sha256` stands.

    Hashes of rows are added modulo 2²⁵⁶. So the hash of a dataset depends neither on the order of its rows, nor on its
    shards, nor on the versions of the libraries that wrote them.
    """
    content = {name: value for name, value in row.items() if name != "images"}
    return int.from_bytes(hashlib.sha256(canonical_json(content).encode()).digest(), "big")


def add_hashes(sums: Sequence[str]) -> str:
    """The logical hash of what several shards hold together."""
    return f"{sum(int(value, 16) for value in sums) % _MODULUS:064x}"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_files(folder: Path) -> list[Path]:
    """The Parquet files of a dataset, sorted.

    Raises:
        DataError: there are none.
    """
    files = sorted(path for config in ("2d", "3d") for path in (folder / config).glob("*.parquet"))
    if not files:
        raise DataError(
            f"{folder}: holds no 2d/*.parquet and no 3d/*.parquet; build a dataset there with `radfm data build`."
        )
    return files


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a shard with some columns, a row group at a time. `extra` is parsed.

    Raises:
        DataError: the file is damaged or lacks a column.
    """
    try:
        file = pq.ParquetFile(path)
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{path}: has no column {', '.join(sorted(missing))}; it was not written by `radfm data build`.")
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns=list(columns)).to_pylist():
                if "extra" in row and isinstance(row["extra"], str):
                    row["extra"] = json.loads(row["extra"])
                yield row
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is no readable Parquet file ({error}).") from error


def read_records(path: Path) -> Iterator[Record]:
    """The records of a shard, scans included."""
    for row in read_columns(path, COLUMNS):
        yield Record.from_row(row)
