"""An index of scans by their difference hashes: which of them are nearly the same as a given one."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from .hashing import hash_distance

# Of 256 bits: what recompression and resizing change. Of 1,350 MedNIST images 8 have a neighbour that near.
MAX_DISTANCE = 8
# Two hashes that differ in at most 8 bits agree in one of 9 bands. A band takes every ninth bit: neighbouring bits are all 0
# at the dark border of a scan, and such a band would be shared by a fifth of the scans of a set.
BANDS, BAND_BITS = 9, 29
FLAT = 16  # a hash with fewer bits of one kind is of an image without structure: nothing can be said of it


class ScanIndex:
    """Hashes with a payload each, in memory or, for many, in a file.

    >>> index = ScanIndex()
    >>> index.add("00ff" * 16, "a")
    >>> list(index.near("01ff" + "00ff" * 15)), list(index.near("ff00" * 16))
    (['a'], [])
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            path.unlink(missing_ok=True)
        self.database = sqlite3.connect(":memory:" if path is None else path)
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.execute("PRAGMA cache_size = -200000")  # kB; bands are inserted all over the index
        self.database.execute("CREATE TABLE scans (band INTEGER, hash TEXT, payload TEXT)")
        self.database.execute("CREATE INDEX bands ON scans (band)")

    def add(self, image_hash: str, payload: str) -> None:
        rows = [(band, image_hash, payload) for band in _bands(image_hash)]
        self.database.executemany("INSERT INTO scans VALUES (?, ?, ?)", rows)

    def near(self, image_hash: str) -> Iterator[str]:
        """Payloads of the scans within `MAX_DISTANCE`, each once for each time that it was added."""
        if _is_flat(image_hash):
            return
        marks = ",".join("?" * BANDS)
        query = f"SELECT (rowid - 1) / {BANDS}, hash, payload FROM scans WHERE band IN ({marks})"
        looked_at = set()
        for number, other, payload in self.database.execute(query, _bands(image_hash)):
            if number not in looked_at and hash_distance(image_hash, other) <= MAX_DISTANCE:
                yield payload
            looked_at.add(number)


def _bands(image_hash: str) -> list[int]:
    bits = format(int(image_hash, 16), f"0{4 * len(image_hash)}b")
    return [(band << BAND_BITS) | int(bits[band::BANDS], 2) for band in range(BANDS)]


def _is_flat(image_hash: str) -> bool:
    ones = int(image_hash, 16).bit_count()
    return min(ones, 4 * len(image_hash) - ones) < FLAT
