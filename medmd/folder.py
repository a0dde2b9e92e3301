"""A source's folder: its tables with the defects that they have, its files by name, its archives packed or unpacked."""

import csv
import gzip
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from .schema import DataError

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # whole papers stand in one cell
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
MEMBER = "::"  # between an archive and its member in a reference to a scan


class Folder:
    """The folder that a user names for a source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.exists():
            raise DataError(f"{root}: there is no such file or folder.")

    def find(self, *patterns: str) -> Path:
        """The first file that one of the patterns matches, whether packed (`.gz`) or not; patterns as `Path.glob` has them.

        Raises:
            DataError: no pattern matches anything.
        """
        found = self.find_all(*patterns)
        if not found:
            raise DataError(f"{self.root}: holds none of {', '.join(patterns)}.")
        return found[0]

    def find_all(self, *patterns: str) -> list[Path]:
        """All files of the first pattern that matches any, sorted; where none is plain, packed ones (`.gz`, `.zip`)."""
        for pattern in patterns:
            for suffix in ("", ".gz", ".zip"):
                found = sorted(path for path in self.root.glob(pattern + suffix) if path.is_file())
                if found:
                    return found
        return []

    def has(self, relative: str) -> bool:
        return (self.root / relative).exists()

    def table(self, *patterns: str, **columns: str | Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows of the table that `find` finds; see `read_table`."""
        return read_table(self.find(*patterns), columns)

    @cached_property
    def by_name(self) -> Mapping[str, str]:
        """File name → path below the root, for portals that spread images over numbered folders.

        Members of the folder's own zip archives count too (`images.zip::a/b.png`). Of two files with one name the first in
        sorted order is taken. Costs memory for each file of the folder.
        """
        names: dict[str, str] = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and not path.name.lower().endswith(TABLES):
                relative = path.relative_to(self.root).as_posix()
                names.setdefault(path.name, relative)
                if path.suffix == ".zip":
                    with zipfile.ZipFile(path) as archive:
                        for member in sorted(archive.namelist()):
                            if not member.endswith("/"):
                                names.setdefault(member.rsplit("/", 1)[-1], f"{relative}{MEMBER}{member}")
        return names

    def locate(self, name: str) -> str:
        """Where a file of this name lies; the name itself where it is nowhere, so that the build lists it as missing."""
        return name if (self.root / name).is_file() else self.by_name.get(name.rsplit("/", 1)[-1], name)


def read_table(path: Path, columns: Mapping[str, str | Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The rows of a CSV, TSV, JSON, JSON lines or Parquet file (`.gz` and `.zip` too) as dicts.

    Args:
        path: the file; its name tells the format.
        columns: for each name that the caller uses, the spellings that the file may have for it. Case, blanks and
            underscores do not count. A name that ends in `_` (`plane_`) may be missing: then it is None.

    Each row has the named columns, and all of the file's columns under the file's names, without blanks around them.

    Raises:
        DataError: a column is missing, or the file is damaged.
    """
    names: dict[str, str | None] | None = None
    try:
        for row in _raw_rows(path):
            if names is None:
                names = _match_columns(path, list(row), columns)
            clean = {key.strip(): value for key, value in row.items() if isinstance(key, str)}
            for field, column in names.items():
                clean[field] = None if column is None else row.get(column)
            yield clean
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no readable table ({error}).") from error


def _match_columns(path: Path, header: list[str], columns: Mapping[str, str | Sequence[str]]) -> dict[str, str | None]:
    known = {_plain(name): name for name in reversed(header) if isinstance(name, str)}
    matched: dict[str, str | None] = {}
    for field, spellings in columns.items():
        options = [spellings] if isinstance(spellings, str) else list(spellings)
        column = next((known[_plain(option)] for option in options if _plain(option) in known), None)
        if column is None and not field.endswith("_"):
            raise DataError(f"{path}: has no column {' or '.join(options)}; its columns are {', '.join(map(str, header))}.")
        matched[field.rstrip("_")] = column
    return matched


def _plain(name: str) -> str:
    return re.sub(r"[\s_\ufeff]+", "", name).lower()


def _raw_rows(path: Path) -> Iterator[dict[str, Any]]:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zip")
    if name.endswith(".parquet"):
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
        return
    with open_text(path) as text:
        if name.endswith(".jsonl"):
            for line in text:
                if line.strip():
                    yield json.loads(line)
        elif name.endswith(".json"):
            content = json.load(text)
            yield from content if isinstance(content, list) else [content]
        else:
            yield from csv.DictReader(text, delimiter="\t" if name.endswith(".tsv") else ",")


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """A text file as UTF-8 without its byte order mark, packed with gzip, packed as a zip's only member, or plain."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
            yield io.TextIOWrapper(member, encoding="utf-8-sig", newline="")
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
            yield text


def read_json(path: Path) -> Any:
    """The content of a JSON file, packed with gzip or not.

    Raises:
        DataError: it is no JSON.
    """
    try:
        with open_text(path) as text:
            return json.load(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: is no readable JSON ({error}).") from error
