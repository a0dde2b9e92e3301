"""What one visitor has shown and said, kept in one folder that goes when the visitor does."""

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reader_process import Reader, Stored, read

if TYPE_CHECKING:
    from inference import Answers, Message

CHIP = re.compile(r"\[(\d+)\]")
MARKS = re.compile(r"</?image>|<image_token>")
IDLE_SECONDS = 3600.0


@dataclass
class Turn:
    """A question as it was shown, and its answer; `yes` is the probability of "yes" against "no" where it was either."""

    question: str
    answer: str = ""
    yes: float | None = None
    seconds: float = 0.0


@dataclass
class Session:
    """A visitor's scans and conversation.

    Scans are numbered from 1; `[1]` in a question is the place of scan 1, and `current` is the one that is looked at.
    """

    folder: Path
    scans: list[Stored] = field(default_factory=list)
    messages: list["Message"] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    asked_about: list[Stored] = field(default_factory=list)
    current: int = 0
    closed: bool = False
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def stop(self) -> Path:
        """The file that ends the answer which is being given."""
        return self.folder / "stop"

    def read(self, files: Iterable[Path], reader: Reader) -> list[str]:
        """Read files into scans; a sentence for each that is none."""
        drop = self.folder / secrets.token_hex(4)
        drop.mkdir()
        links, gone = [], []
        for number, file in enumerate(files):
            link = drop / file.name
            if link.exists():
                link = drop / f"{number}-{file.name}"
            try:
                _link(file, link)
                links.append(link)
            except FileNotFoundError:
                gone.append(f"{file.name}: had to wait too long to be read; drop it again.")
        scans, refused = read(links, drop / "scans", reader)
        for link in links:
            link.unlink(missing_ok=True)
        self.scans += scans
        if self.closed:
            self.close()
        return gone + refused

    def ask(self, question: str, answers: "Answers", scan_class: type) -> Iterator[Turn]:
        """The turn with more and more of its answer."""
        start = time.monotonic()
        self.stop.unlink(missing_ok=True)
        content, placed = self._content(MARKS.sub("", question))
        turn = Turn(" ".join(self._shown(part) for part in content))
        yield turn
        asked_about = self.asked_about + placed
        message = {"role": "user", "content": [{k: v for k, v in part.items() if k != "scan"} for part in content]}
        messages = [*self.messages, message]
        features = answers.features([(scan.about["key"], partial(scan.load, scan_class)) for scan in asked_about])
        for turn.answer in answers.stream(messages, features, self.stop):
            yield turn
        if turn.answer.lower().strip(". ") in ("yes", "no"):
            turn.yes = answers.yes(messages, features)
        turn.seconds = time.monotonic() - start
        said = {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}
        self.messages, self.asked_about = [*messages, said], asked_about
        self.turns.append(turn)
        yield turn

    def _content(self, question: str) -> tuple[list[dict[str, Any]], list[Stored]]:
        """A question as parts of a message, scans in their places: those never asked about and not placed come first."""
        named = [int(number) for number in CHIP.findall(question) if 1 <= int(number) <= len(self.scans)]
        first = [i for i, scan in enumerate(self.scans, 1) if scan not in self.asked_about and i not in named]
        parts: list[dict[str, Any]] = [{"type": "image", "scan": number} for number in first]
        for i, piece in enumerate(CHIP.split(question)):
            is_place = i % 2 == 1 and int(piece) in named
            if is_place:
                parts.append({"type": "image", "scan": int(piece)})
            elif i % 2 == 1:
                parts.append({"type": "text", "text": f"[{piece}]"})
            elif piece.strip():
                parts.append({"type": "text", "text": piece if i else piece.lstrip()})
        return parts, [self.scans[part["scan"] - 1] for part in parts if part["type"] == "image"]

    def _shown(self, part: dict[str, Any]) -> str:
        if part["type"] == "text":
            return part["text"].strip()
        return f"`{part['scan']} · {self.scans[part['scan'] - 1].name.replace('`', '')}`"

    def downloads(self, model_id: str) -> list[tuple[str, Path]]:
        """What can be taken along, written anew: the conversation, and the overlay of the scan that is looked at."""
        files = []
        if self.turns:
            markdown, as_json = self._save(model_id)
            files = [("conversation (Markdown)", markdown), ("conversation (JSON)", as_json)]
        overlay = self.scans[self.current - 1].folder / "overlay.nii.gz"
        return [*files, ("overlay (NIfTI)", overlay)] if overlay.exists() else files

    def _save(self, model_id: str) -> tuple[Path, Path]:
        lines = [
            f"# A conversation with {Path(model_id).name}",
            "",
            "For research. No medical device; not for diagnosis.",
            "",
        ]
        for turn in self.turns:
            share = "" if turn.yes is None else f" (yes {turn.yes:.0%}, no {1 - turn.yes:.0%})"
            lines += [f"**Question.** {turn.question}", "", f"**Answer.** {turn.answer}{share}", ""]
        markdown, as_json = self.folder / "conversation.md", self.folder / "conversation.json"
        markdown.write_text("\n".join(lines))
        turns = [
            {"question": turn.question, "answer": turn.answer, "yes": turn.yes, "seconds": round(turn.seconds, 2)}
            for turn in self.turns
        ]
        scans = [described(scan) for scan in self.scans]
        content = {"model": Path(model_id).name, "scans": scans, "turns": turns}
        as_json.write_text(json.dumps(content, ensure_ascii=False, indent=1))
        return markdown, as_json

    def close(self) -> None:
        """Delete everything that came of this visitor."""
        self.closed = True
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """The visitors who are here; their folders lie in `sessions`, what the browser sent in `uploads`."""

    def __init__(self, work: Path):
        self.folder, self.uploads = work / "sessions", work / "uploads"
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def new(self) -> Session:
        """A session that nobody else knows of."""
        return Session(self.folder / secrets.token_urlsafe(16))

    def of(self, visitor: str) -> Session:
        """A visitor's session."""
        with self._lock:
            if visitor not in self._sessions:
                self._sessions[visitor] = self.new()
            session = self._sessions[visitor]
            session.used = time.monotonic()
            return session

    def end(self, visitor: str) -> None:
        """Forget a visitor."""
        with self._lock:
            session = self._sessions.pop(visitor, None)
        if session is not None:
            session.close()

    def sweep(self, upload_seconds: float) -> None:
        """Delete uploads older than so many seconds, broken off or not, and forget visitors unheard of for an hour."""
        for file in self.uploads.rglob("*"):
            with suppress(FileNotFoundError):
                if file.is_file() and time.time() - file.stat().st_mtime > upload_seconds:
                    file.unlink()
        with self._lock:
            idle = [name for name, session in self._sessions.items() if time.monotonic() - session.used > IDLE_SECONDS]
        for visitor in idle:
            self.end(visitor)


def described(scan: Stored) -> dict[str, Any]:
    """What JSON tells of a scan. Not under "path", which Gradio's client would take for a file to fetch."""
    about = scan.about
    return {"name": scan.name, "modality": about["modality"], "shape": about["shape"], "spacing": about["spacing"]}


def _link(file: Path, link: Path) -> None:
    try:
        link.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy(file, link)
