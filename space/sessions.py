"""What one visitor has shown and asked, with a folder of its own for what can be downloaded."""

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import limits
from remote_code import AnswerError
from scan_store import Read, ScanStore, StoredScan
from tasks import Tasks

if TYPE_CHECKING:
    from inference import Message, Model

PLACE = re.compile(r"\[(\d{1,3})\]")


@dataclass
class Turn:
    """A question, the scans that it placed, and its answer.

    Args:
        parts: the message's content: {"type": "text", "text"} and {"type": "image", "scan": number}.
        scans: the scans of the image parts, in their order.
        about: the scans that question and answer are about, also those that an earlier turn placed.
        shown: the question as the conversation shows it.
        note: how far the answer can be trusted.
        p_yes: probability of "yes" against "no" where the answer is either.
        refused: whether `answer` says why the model was not asked.
    """

    parts: list[dict[str, Any]]
    scans: list[StoredScan]
    about: list[StoredScan]
    shown: str
    answer: str = ""
    note: str = ""
    p_yes: float | None = None
    seconds: float = 0.0
    refused: bool = False

    def messages(self) -> list["Message"]:
        """The turn as the chat template takes it: the question, and the answer where there is one."""
        content = [{key: value for key, value in part.items() if key != "scan"} for part in self.parts]
        question = {"role": "user", "content": content}
        if not self.answer:
            return [question]
        return [question, {"role": "assistant", "content": [{"type": "text", "text": self.answer}]}]


@dataclass
class Session:
    """A visitor's scans and conversation.

    Scans are numbered from 1: `[1]` in a question is the place of scan 1. `current` is the one that is looked at, and
    `overlaid` are those whose overlay the visitor asked for. While `reading` files, a question is kept in `waiting` and
    asked afterwards.
    """

    folder: Path
    store: ScanStore
    tasks: Tasks
    scans: list[StoredScan] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    overlaid: list[StoredScan] = field(default_factory=list)
    current: int = 0
    reading: int = 0
    waiting: str = ""
    dropped: list[str] = field(default_factory=list)
    closed: bool = False
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def stop(self) -> Path:
        """The file that ends the answer which is being given."""
        return self.folder / "stop"

    def select_new(self, files: list[str]) -> list[str]:
        """The files of a drop that were not in the drop before: while one waits to be read, the zone keeps its files."""
        before, self.dropped = self.dropped, files
        return files[len(before) :] if len(files) > len(before) and files[: len(before)] == before else files

    def read(self, files: list[Path]) -> Iterator[Read]:
        """Read files into scans; they are added as soon as they can be seen. Raises `AnswerError`."""
        if sum(read.bytes for read in self.reads) > limits.SESSION_BYTES:
            raise AnswerError(f"Your scans take more than {limits.SESSION_BYTES / 1e9:.0f} GB: start a new conversation.")
        yield from self._hold(self.store.read(files), self._add)

    def choose(self, number: int, choice: dict[str, Any]) -> Iterator[Read]:
        """Read another series or volume of scan `number` in its place. Raises `AnswerError`."""
        before = self.scans[number - 1]

        def replace(scans: list[StoredScan]) -> None:
            if scans:
                about = scans[0].about
                choices = {key: about.get(key, before.about[key]) for key in ("series_choices", "volume_choices")}
                scans[0].about = {**about, **choices, "chosen": choice}
                self.scans[number - 1] = scans[0]

        yield from self._hold(self.store.read_again(before, choice), replace)

    def _hold(self, reading: Iterator[Read], place: Callable[[list[StoredScan]], None]) -> Iterator[Read]:
        self.reading += 1
        try:
            for read in reading:
                if read not in self.reads:
                    self.reads.append(read)
                place(read.scans)
                yield read
        finally:
            self.reading -= 1
            if self.closed:
                self.close()

    def _add(self, scans: list[StoredScan]) -> None:
        for scan in scans:
            if scan not in self.scans:
                if len(self.scans) == limits.SESSION_SCANS:
                    raise AnswerError(f"A conversation holds {limits.SESSION_SCANS} scans at most: start a new one.")
                self.scans.append(scan)
                self.current = len(self.scans)

    def drop_incomplete(self) -> None:
        """Forget scans whose reading failed after they had been shown."""
        self.scans = [scan for scan in self.scans if scan.complete]
        self.current = min(self.current, len(self.scans))

    def ask(self, question: str, model: "Model") -> Iterator[Turn]:
        """The turn with more and more of its answer. Raises `AnswerError`."""
        start = time.monotonic()
        self.stop.unlink(missing_ok=True)
        turn = self._turn(question)
        yield turn
        refusal = self.tasks.refusal(question, turn.about)
        if refusal:
            turn.answer, turn.refused = refusal, True
        else:
            yield from self._answer(turn, question, model)
        turn.seconds = time.monotonic() - start
        self.turns.append(turn)
        yield turn

    def _answer(self, turn: Turn, question: str, model: "Model") -> Iterator[Turn]:
        history = self._history(turn)
        messages = [message for earlier in history for message in earlier.messages()] + turn.messages()
        features = []
        for scan in [scan for each in [*history, turn] for scan in each.scans]:
            if scan.image_tokens is None:
                scan.image_tokens = model.image_tokens(scan.folder / "pixel_values.npy")
            features.append(scan.image_tokens)
        for answer in model.stream(messages, features, self.stop):
            turn.answer = answer
            yield turn
        if withheld := self.tasks.withheld(turn.answer, turn.about):
            turn.answer, turn.refused = withheld, True
            return
        if turn.answer.lower().strip(". ") in ("yes", "no"):
            turn.p_yes = model.p_yes(messages, features)
        turn.note = self.tasks.note(question, turn.answer, turn.about)

    def _history(self, turn: Turn) -> list[Turn]:
        """The earlier turns that the model is shown: all, or those about the same scan where it takes one at a time."""
        answered = [earlier for earlier in self.turns if not earlier.refused]
        if self.tasks.scans_per_question != 1:
            return answered
        return [earlier for earlier in answered if earlier.about == turn.about]

    def _turn(self, question: str) -> Turn:
        """A question as message parts. Raises `AnswerError` where it is too long or names too many scans."""
        if len(question) > limits.QUESTION_CHARACTERS:
            raise AnswerError(f"The question is longer than {limits.QUESTION_CHARACTERS:,} characters: shorten it.")
        if len(self.turns) >= limits.SESSION_TURNS:
            raise AnswerError(f"A conversation holds {limits.SESSION_TURNS} questions at most: start a new one.")
        named = [n for n in map(int, PLACE.findall(question)) if 1 <= n <= len(self.scans)]
        if len(named) > limits.QUESTION_PLACES:
            raise AnswerError(f"The question names scans {len(named)} times; {limits.QUESTION_PLACES} is the most.")
        if any(not self.scans[n - 1].complete for n in [*named, self.current] if n):
            raise AnswerError("The scan is still being read: ask again in a moment.")
        if self.tasks.scans_per_question == 1:
            about = [self.scans[n - 1] for n in dict.fromkeys(named or [self.current])]
            earlier_scans = [scan for earlier in self.turns if not earlier.refused for scan in earlier.scans]
            placed = [n for n in dict.fromkeys(named or [self.current]) if self.scans[n - 1] not in earlier_scans]
        else:
            earlier_scans = [scan for earlier in self.turns for scan in earlier.scans]
            waiting = [n for n, scan in enumerate(self.scans, 1) if scan not in earlier_scans and n not in named]
            placed = waiting + named
            about = [self.scans[n - 1] for n in dict.fromkeys(placed)] or list(dict.fromkeys(earlier_scans))
        parts = _parts(question, placed, named)
        scans = [self.scans[part["scan"] - 1] for part in parts if part["type"] == "image"]
        return Turn(parts, scans, about, self._shown(question, about, named))

    def _shown(self, question: str, about: list[StoredScan], named: list[int]) -> str:
        """The question with the titles of the scans that it is about and does not name itself."""
        text = PLACE.sub(lambda place: f"[{place[1]} · {self._title(int(place[1]))}]", question.strip())
        numbers = [self.scans.index(scan) + 1 for scan in about]
        before = [f"[{n} · {self._title(n)}]" for n in numbers if n not in named]
        return " ".join([*before, text])

    def _title(self, number: int) -> str:
        return self.scans[number - 1].title if 1 <= number <= len(self.scans) else "no such scan"

    def downloads(self, model_id: str) -> list[tuple[str, Path]]:
        """What can be downloaded, written anew: the conversation, and the overlay of the current scan."""
        files = []
        if self.turns:
            markdown, as_json = self._write_conversation(model_id)
            files = [("conversation (Markdown)", markdown), ("conversation (JSON)", as_json)]
        if not self.scans:
            return files
        scan = self.scans[self.current - 1]
        return [*files, ("overlay (NIfTI)", scan.overlay)] if scan in self.overlaid else files

    def _write_conversation(self, model_id: str) -> tuple[Path, Path]:
        lines = [
            f"# A conversation with {Path(model_id).name}",
            "",
            "For research. No medical device; not for diagnosis.",
            "",
        ]
        for turn in self.turns:
            share = "" if turn.p_yes is None else f" (yes {turn.p_yes:.0%}, no {1 - turn.p_yes:.0%}, not calibrated)"
            lines += [f"**Question.** {turn.shown}", "", f"**Answer.** {turn.answer}{share}", ""]
            lines += [f"*{turn.note}*", ""] if turn.note else []
        markdown, as_json = self.folder / "conversation.md", self.folder / "conversation.json"
        markdown.write_text("\n".join(lines), encoding="utf-8")
        content = {
            "model": Path(model_id).name,
            "scans": [describe(scan) for scan in self.scans],
            "turns": [
                {"question": t.shown, "answer": t.answer, "p_yes": t.p_yes, "note": t.note, "seconds": round(t.seconds, 2)}
                for t in self.turns
            ],
        }
        as_json.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        return markdown, as_json

    def close(self) -> None:
        """Delete the folder and let go of the scans."""
        self.closed = True
        while self.reads:
            self.store.release(self.reads.pop())
        shutil.rmtree(self.folder, ignore_errors=True)


def _parts(question: str, placed: list[int], named: list[int]) -> list[dict[str, Any]]:
    """A question as parts of a message: the scans of `placed` where they are named, the others first."""
    parts: list[dict[str, Any]] = [{"type": "image", "scan": n} for n in placed if n not in named]
    left = list(placed)
    text = ""
    for i, piece in enumerate(PLACE.split(question)):
        if i % 2 == 0:
            text += piece if i else piece.lstrip()
        elif int(piece) in left:
            left.remove(int(piece))
            parts += [{"type": "text", "text": text}] if text.strip() else []
            parts.append({"type": "image", "scan": int(piece)})
            text = ""
        elif int(piece) not in named:
            text += f"[{piece}]"
    # One part for one stretch of text: two parts could spell a mark between them that neither holds.
    return parts + ([{"type": "text", "text": text}] if text.strip() else [])


class Sessions:
    """The visitors who are here; their folders lie in `sessions`, what the browser sent in `uploads`."""

    def __init__(self, work: Path, store: ScanStore, tasks: Callable[[], Tasks]):
        self.folder, self.uploads = work / "sessions", work / "uploads"
        self._store, self._tasks = store, tasks
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def new(self) -> Session:
        """A session that nobody else knows of."""
        return Session(self.folder / secrets.token_urlsafe(16), self._store, self._tasks())

    def get(self, visitor: str) -> Session:
        """The session of a visitor, new where there is none. Raises `AnswerError` where there are too many."""
        with self._lock:
            if visitor not in self._sessions:
                if len(self._sessions) >= limits.SESSIONS:
                    raise AnswerError("This Space has as many visitors as it can serve. Try again later.")
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
        """Delete uploads older than so many seconds, complete or not, and forget visitors who have been idle too long."""
        for file in self.uploads.rglob("*"):
            with suppress(FileNotFoundError):
                if file.is_file() and time.time() - file.stat().st_mtime > upload_seconds:
                    file.unlink()
        now = time.monotonic()
        with self._lock:
            idle = [name for name, one in self._sessions.items() if now - one.used > limits.SESSION_IDLE_SECONDS]
        for visitor in idle:
            self.end(visitor)


def describe(scan: StoredScan) -> dict[str, Any]:
    """A scan in JSON. Not under "path", which Gradio's client would take for a file to fetch."""
    about = scan.about
    return {
        "name": scan.name,
        "series": about["series"],
        "modality": about["modality"],
        "shape": about["shape"],
        "spacing": about["spacing"],
    }
