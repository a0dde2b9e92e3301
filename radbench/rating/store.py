"""Ratings as they are clicked: a line of JSON a click, appended and flushed, so that nothing is lost with the page."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from ..items import BenchError

LOWEST, HIGHEST = 0, 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Click:
    """One rating: `value` from 0 to 5, and a reason that may be empty. Of two clicks about one answer the later counts."""

    rater: str
    item: str
    model: str
    value: int
    reason: str = ""


class RatingStore:
    """The ratings of a folder, a file a rater.

    Args:
        folder: is made where it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()

    def save(self, click: Click) -> None:
        """Append a rating; it is on the disk when this returns.

        Raises:
            BenchError: the rater's name cannot be a file name, or the value is out of range.
        """
        if not LOWEST <= click.value <= HIGHEST:
            raise BenchError(f"rating {click.value} is not from {LOWEST} to {HIGHEST}.")
        file = self._file(click.rater)
        with self._lock, open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(click), ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def load(self, rater: str) -> dict[tuple[str, str], Click]:
        """(item, model) → the last rating of one rater.

        Raises:
            BenchError: the rater's name cannot be a file name, or a line is no rating.
        """
        file = self._file(rater)
        return _latest(file) if file.exists() else {}

    def _file(self, rater: str) -> Path:
        if not _NAME.fullmatch(rater):
            raise BenchError(f"rater {rater!r}: a name has up to 40 letters, digits, - and _.")
        return self.folder / f"ratings-{rater}.jsonl"

    def all(self) -> Iterator[Click]:
        """The last ratings of all raters, by rater.

        Raises:
            BenchError: a line is no rating.
        """
        for file in sorted(self.folder.glob("ratings-*.jsonl")):
            yield from _latest(file).values()


def _latest(file: Path) -> dict[tuple[str, str], Click]:
    found: dict[tuple[str, str], Click] = {}
    text = file.read_text(encoding="utf-8")
    # What follows the last line break is a line that a crash cut off: its click was never confirmed.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            click = Click(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise BenchError(f"{file}, line {number}: is no rating ({error}).") from error
        found[click.item, click.model] = click
    return found
