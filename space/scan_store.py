"""Scans that were read, for page and API: one owner of their folders and image tokens, with one clock and one quota."""

import hashlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import limits
from reader_process import Reader
from remote_code import AnswerError

if TYPE_CHECKING:
    import torch

FULL = "The disk of this Space is full. Try again later, or with a smaller scan."


@dataclass(eq=False)
class StoredScan:
    """A scan that was read.

    Args:
        name: the file's name, or "first.dcm and 19 more".
        folder: what `prepare.prepare` wrote.
        about: what `prepare.prepare` yielded, and the series and volumes to choose from.
        complete: whether the folder is complete; until then it can be shown and not be asked about.
        image_tokens: (tokens, width) once somebody has asked about it.
    """

    name: str
    folder: Path
    about: dict[str, Any]
    complete: bool = False
    image_tokens: "torch.Tensor | None" = None

    @property
    def overlay(self) -> Path:
        """The file of the overlay, which is there once somebody has asked for it."""
        return self.folder / "overlay.nii.gz"

    @property
    def title(self) -> str:
        """The number and description of its series, or the file's name where there is no description."""
        series = self.about["series"] or ""
        return series if any(letter.isalpha() for letter in series) else self.name


@dataclass(eq=False)
class Read:
    """What one drop of files became: its folder holds the files and, below, one folder a scan."""

    folder: Path
    scans: list[StoredScan] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    bytes: int = 0
    holders: int = 0
    used: float = field(default_factory=time.monotonic)


class ScanStore:
    """Reads by the content of their files, so that the same file is read and encoded once for everybody."""

    def __init__(self, folder: Path, reader: Reader):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._reader = folder, reader
        self._reads: dict[str, Read] = {}
        self._lock = threading.RLock()

    def read(self, files: Sequence[Path], choice: dict[str, Any] | None = None) -> Iterator[Read]:
        """Read files, or find what they were read to before; yields the same `Read` again whenever there is more in it.

        The caller holds it and calls `release` when it is done with it, also after an exception.

        Args:
            files: uploads; they are linked or copied, so that they may be deleted meanwhile.
            choice: "series" and "volume" as `load_scan` takes them.

        Raises:
            AnswerError: the quota of all visitors or the disk is full.
        """
        read: Read | None = None
        try:
            key = _content_key(files, choice or {})
            known = self._hold_known(key)
            if known is not None:
                yield known
                return
            self._make_room(sum(file.stat().st_size for file in files if file.exists()))
            read = Read(self._folder / secrets.token_urlsafe(16), holders=1)
            read.folder.mkdir()
            source = read.folder / "source"
            source.mkdir()
            links, gone = _link_all(files, source)
            read.refused += gone
            yield from self._run(read, links, choice or {})
        except OSError as error:
            if read is not None:
                shutil.rmtree(read.folder, ignore_errors=True)
            raise AnswerError(FULL) from error
        read.bytes = sum(file.stat().st_size for file in read.folder.rglob("*") if file.is_file())
        with self._lock:
            if read.scans and not read.refused and key not in self._reads:
                self._reads[key] = read
        yield read

    def _hold_known(self, key: str) -> Read | None:
        with self._lock:
            read = self._reads.get(key)
            if read is not None:
                read.holders += 1
                read.used = time.monotonic()
            return read

    def _run(self, read: Read, files: list[Path], choice: dict[str, Any]) -> Iterator[Read]:
        if not files:
            return
        name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        job = {"files": [str(file) for file in files], "folder": str(read.folder), **choice}
        by_folder: dict[str, StoredScan] = {}
        for event in self._reader.run({"read": job}, name):
            if "refused" in event:
                read.refused.append(event["refused"])
                continue
            found = event["scan"]
            scan = by_folder.get(found["folder"])
            if scan is None:
                scan = by_folder[found["folder"]] = StoredScan(found["name"], Path(found["folder"]), found["about"])
                read.scans.append(scan)
            scan.about, scan.complete = found["about"], event["complete"]
            yield read
        read.scans = [scan for scan in read.scans if scan.complete]

    def read_again(self, scan: StoredScan, choice: dict[str, Any]) -> Iterator[Read]:
        """Another series or volume of the files that a scan came from."""
        source = scan.folder.parent / "source"
        yield from self.read(sorted(source.iterdir()), choice)

    def draw(self, scan: StoredScan, low: float, high: float) -> list[Path]:
        """Slices as PNGs with one grey window; those with an earlier window are deleted. Empty where drawing failed."""
        folder = scan.folder / f"slices-{low:g}-{high:g}"
        if not folder.exists():
            for old in scan.folder.glob("slices-*"):
                shutil.rmtree(old, ignore_errors=True)
            about = {key: scan.about[key] for key in ("affine", "spacing")}
            job = {"scan": {"folder": str(scan.folder), "about": about}, "low": low, "high": high, "folder": str(folder)}
            for _ in self._reader.run({"draw": job}, scan.name):
                pass
        return sorted(folder.glob("*.png"))

    def release(self, read: Read) -> None:
        """One holder less. What nobody holds and nobody could find again is deleted at once."""
        with self._lock:
            read.holders -= 1
            read.used = time.monotonic()
            if read.holders == 0 and read not in self._reads.values():
                shutil.rmtree(read.folder, ignore_errors=True)

    def sweep(self, idle_seconds: float) -> None:
        """Delete what nobody has held for so many seconds."""
        with self._lock:
            now = time.monotonic()
            for key, read in list(self._reads.items()):
                if read.holders == 0 and now - read.used > idle_seconds:
                    self._delete(key)

    def _delete(self, key: str) -> None:
        shutil.rmtree(self._reads.pop(key).folder, ignore_errors=True)

    def _make_room(self, coming: int) -> None:
        """Delete what nobody holds, longest unused first, until `coming` bytes fit in the quota and on the disk."""
        with self._lock:
            idle = sorted((r.used, key) for key, r in self._reads.items() if r.holders == 0)
            while self._is_full(coming):
                if not idle:
                    raise AnswerError(FULL)
                self._delete(idle.pop(0)[1])

    def _is_full(self, coming: int) -> bool:
        stored = sum(read.bytes for read in self._reads.values())
        free = shutil.disk_usage(self._folder).free
        return stored + coming > limits.STORE_BYTES or free - coming < limits.DISK_RESERVE


def _content_key(files: Sequence[Path], choice: dict[str, Any]) -> str:
    """A hash of the files' names and bytes and of what was chosen in them."""
    digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode())
    for file in files:
        digest.update(f"{file.name}\0".encode())
        if file.exists():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _link_all(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """Links to files in a folder, and a sentence for each that was deleted meanwhile."""
    links, gone = [], []
    for number, file in enumerate(files):
        link = folder / file.name
        if link.exists():
            link = folder / f"{number}-{file.name}"
        try:
            link.hardlink_to(file)
            links.append(link)
        except FileNotFoundError:
            gone.append(f"{file.name}: had to wait too long to be read. Drop it again.")
        except OSError:
            # Another file system, or one without hard links.
            shutil.copy(file, link)
            links.append(link)
    return links, gone
