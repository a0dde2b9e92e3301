"""What happens on the page and in the API when a visitor does something."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

import http_guard
import limits
import markup
import overlay
from examples import EXAMPLES, Example
from reader_process import Reader
from remote_code import AnswerError, Repository
from scan_store import ScanStore
from sessions import Session, Sessions, Turn, describe
from tasks import Tasks

if TYPE_CHECKING:
    from inference import Model

NO_SCAN = "Drop a scan first, or take an example."
NO_COOKIE = "This page needs a cookie to keep your scans apart from those of others: allow it, or open the Space in a tab."
KEEP = gr.skip()
Outputs = tuple[Any, ...]


class Callbacks:
    """One method for each thing a visitor can do; each takes the request to know whose session it is."""

    def __init__(self, model_id: str, work: Path):
        """Start loading the model; meanwhile the page can be opened and its text is there."""
        self.repository = Repository(model_id)
        self.reader = Reader(lambda: self.repository.reader)
        self.store = ScanStore(work / "scans", self.reader)
        self.sessions = Sessions(work, self.store, lambda: self.tasks)
        self._model = ThreadPoolExecutor(1).submit(self._load)

    def _load(self) -> "Model":
        # torch takes seconds to import.
        from inference import Model

        return Model(self.repository)

    @property
    def model(self) -> "Model":
        """The model, as soon as it is there."""
        return self._model.result()

    @cached_property
    def tasks(self) -> Tasks:
        """What the model was trained for."""
        return Tasks(self.repository.tasks, self.repository.scores)

    def session(self, request: gr.Request) -> Session:
        """The visitor's session. Raises `AnswerError` where there is no cookie or no room."""
        return self.sessions.get(_visitor(request))

    def open(self, request: gr.Request) -> Iterator[Outputs]:
        """A page was opened → model card, then as `show` for the first example."""
        card = markup.model_card(self.tasks, self.repository.model_id, None)
        yield card, *[KEEP] * 5
        example = next(iter(EXAMPLES.values()))
        for outputs in self.show([str(example.file)], request):
            yield card, *outputs
        try:
            yield markup.model_card(self.tasks, self.repository.model_id, self.model.num_parameters()), *[KEEP] * 5
        except AnswerError as error:
            yield card, markup.notice(str(error), bad=True), *[KEEP] * 4

    def show(self, files: list[str] | None, request: gr.Request) -> Iterator[Outputs]:
        """Read dropped files → notice, drop zone, series panel, viewer, downloads."""
        paths = [Path(file) for file in files or []]
        if not paths:
            return
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield markup.notice(f"Reading {paths[0].name}{more} …"), *[KEEP] * 4
        try:
            session = self.session(request)
            for read in session.read(paths):
                found, refused = read.scans, read.refused
                if session.scans and not session.closed:
                    yield KEEP, KEEP, *self.current_view(session)
        except AnswerError as error:
            yield markup.notice(str(error), bad=True), None, *[KEEP] * 3
            return
        session.drop_incomplete()
        warnings = [f"{scan.title}: {warning}" for scan in found for warning in scan.about["warnings"]]
        notice = markup.notice(" ".join([*refused, *warnings]), bad=bool(refused))
        if not session.closed:
            yield notice, None, *self.current_view(session)

    def drop(self, files: list[str] | None, request: gr.Request) -> Iterator[Outputs]:
        """Files were dropped, perhaps while others are being read → as `show`."""
        with suppress(AnswerError):  # `show` says it
            files = self.session(request).select_new(files or [])
        yield from self.show(files, request)

    def example(self, label: str, request: gr.Request) -> Iterator[Outputs]:
        """Read an example → as `show`, and the question to ask about it."""
        example: Example = EXAMPLES[label]
        for outputs in self.show([str(example.file)], request):
            yield *outputs, example.question
        yield markup.notice(example.remark), *[KEEP] * 4, example.question

    def choose(self, event: gr.EventData, request: gr.Request) -> Iterator[Outputs]:
        """Another series or volume of the current scan → as `show`."""
        yield markup.notice("Reading …"), *[KEEP] * 4
        try:
            session = self.session(request)
            number, choice = _choice(event, session)
            for read in session.choose(number, choice):
                refused = read.refused
                if not session.closed:
                    yield KEEP, KEEP, *self.current_view(session)
        except AnswerError as error:
            yield markup.notice(str(error), bad=True), *[KEEP] * 4
            return
        yield markup.notice(" ".join(refused), bad=bool(refused)), KEEP, *self.current_view(session)

    def current_view(self, session: Session) -> Outputs:
        """Series panel, viewer and downloads for the current scan."""
        if not session.scans:
            return "", None, ""
        panel = markup.series_panel(session.scans, session.current)
        return panel, self.value(session), self.downloads(session)

    def downloads(self, session: Session) -> str:
        """Links to what can be downloaded."""
        return markup.downloads(session.downloads(self.repository.model_id))

    def value(self, session: Session, **more: Any) -> dict[str, Any]:
        """What the viewer is given of the current scan."""
        scan = session.scans[session.current - 1]
        return {**markup.viewer_value(session.current, scan, scan in session.overlaid), **more}

    def select(self, event: gr.EventData, request: gr.Request) -> Outputs:
        """Another scan of the panel → series panel, viewer, downloads."""
        session = self.session(request)
        number = _number(event, session)
        if number is None:
            return KEEP, KEEP, KEEP
        session.current = number
        return self.current_view(session)

    def flat(self, event: gr.EventData, request: gr.Request) -> Any:
        """Slices for a browser without WebGL2 → viewer."""
        session = self.session(request)
        number = _number(event, session)
        if number is None:
            return KEEP
        session.current = number
        scan = session.scans[number - 1]
        if not scan.complete:
            return KEEP
        windows = scan.about["windows"] or [{"low": 0.0, "high": 255.0}]
        wanted = getattr(event, "window", 0)
        window = windows[wanted if isinstance(wanted, int) and 0 <= wanted < len(windows) else 0]
        pictures = self.store.draw(scan, window["low"], window["high"])
        return self.value(session, pictures=[markup.address(file) for file in pictures])

    def ask(self, question: str, request: gr.Request) -> Iterator[Outputs]:
        """A question → chat, question box, ask and stop buttons, downloads; again and again as the answer grows."""
        if not question.strip():
            yield KEEP, KEEP, KEEP, KEEP, KEEP
            return
        busy = gr.update(interactive=False), gr.update(interactive=True)
        idle = gr.update(interactive=True), gr.update(interactive=False)
        turns: list[Turn] = []
        try:
            session = self.session(request)
            turns = session.turns
            if session.reading:
                session.waiting = question[: limits.QUESTION_CHARACTERS]
                waiting = Turn([], [], [], session.waiting, "The scan is still being read; then this is asked.")
                yield markup.conversation([*turns, waiting]), "", KEEP, KEEP, KEEP
                return
            if not session.scans:
                raise AnswerError(NO_SCAN)
            for turn in session.ask(question, self.model):
                yield markup.conversation([*(t for t in turns if t is not turn), turn]), "", *busy, KEEP
        except AnswerError as error:
            failed = Turn([], [], [], question[: limits.QUESTION_CHARACTERS], str(error))
            yield markup.conversation([*turns, failed]), question[: limits.QUESTION_CHARACTERS], *idle, KEEP
            return
        except Exception as error:
            http_guard.print_without_values(error)
            failed = Turn([], [], [], question, "Something went wrong with this question. Try another one.")
            yield markup.conversation([*turns, failed]), question, *idle, KEEP
            return
        if not session.closed:
            yield markup.conversation(session.turns), "", *idle, self.downloads(session)

    def ask_waiting(self, request: gr.Request) -> Iterator[Outputs]:
        """The question that had to wait for a scan → as `ask`."""
        try:
            session = self.session(request)
        except AnswerError:
            yield KEEP, KEEP, KEEP, KEEP, KEEP
            return
        question, session.waiting = session.waiting, ""
        yield from self.ask(question, request)

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being given."""
        self.session(request).stop.touch()

    def show_attention(self, request: gr.Request) -> Outputs:
        """The attention over the current scan → viewer, downloads, notice."""
        try:
            session = self.session(request)
            if not session.scans:
                raise AnswerError(NO_SCAN)
            scan = session.scans[session.current - 1]
            if not scan.complete:
                raise AnswerError("The scan is still being read: ask again in a moment.")
            if not scan.overlay.exists():
                attention = self.model.attention(scan.folder / "pixel_values.npy")
                values, affine = overlay.place_on_patches(attention, scan.about["model_view"])
                overlay.write(values, affine, scan.overlay)
                scan.about["brightest"] = float(values.max())
            session.overlaid.append(scan)
        except AnswerError as error:
            return KEEP, KEEP, markup.notice(str(error), bad=True)
        return self.value(session), self.downloads(session), ""

    def restart(self, request: gr.Request) -> Outputs:
        """Forget scans and conversation → notice, drop zone, series panel, viewer, downloads, chat."""
        self.sessions.end(_visitor(request))
        return "", None, "", None, "", []

    def leave(self, request: gr.Request) -> None:
        """The visitor is gone."""
        self.sessions.end(_visitor(request))

    def sweep(self) -> None:
        """Delete old uploads, idle sessions, and scans that nobody has held for a while."""
        self.sessions.sweep(limits.UPLOAD_KEPT_SECONDS)
        self.store.sweep(limits.STORE_IDLE_SECONDS)

    def close(self) -> None:
        """End the reader process."""
        self.reader.close()

    def answer(self, files: list[str], question: str) -> dict[str, Any]:
        """Ask about radiology scans: DICOM, a zipped DICOM series, NIfTI or images.

        Args:
            files: the scans; several DICOM files of one series are one scan.
            question: what to ask, in English; [1] in it is the place of the first scan.

        Returns:
            model, question, answer, note (how far it can be trusted), p_yes (its probability against no), scans (name,
            series, modality, shape, spacing) and seconds.
        """
        start = time.monotonic()
        session = self.sessions.new()
        try:
            refused: list[str] = []
            for read in session.read([Path(file) for file in files or []]):
                refused = read.refused
            session.drop_incomplete()
            if refused or not session.scans:
                raise AnswerError(" ".join(refused) or NO_SCAN)
            if self.tasks.scans_per_question == 1 and len(session.scans) > 1 and "[" not in question:
                raise AnswerError("This model was trained on one scan at a time: send one, or name one, as in [1].")
            *_, turn = session.ask(question, self.model)
            return {
                "model": Path(self.repository.model_id).name,
                "question": question,
                "answer": turn.answer,
                "note": turn.note,
                "p_yes": turn.p_yes,
                "scans": [describe(scan) for scan in session.scans],
                "seconds": round(time.monotonic() - start, 2),
            }
        except AnswerError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            session.close()

    def ask_about_scan(self, scan: str, question: str) -> str:
        """Ask a radiology model about one scan. For research; no medical device.

        Args:
            scan: a DICOM file, a zip of a DICOM series, a NIfTI volume or an image.
            question: what to ask, in English.

        Returns:
            JSON: model, question, answer, note, p_yes (its probability against no), scans, seconds.
        """
        return json.dumps(self.answer([scan] if scan else [], question))


def _visitor(request: gr.Request) -> str:
    """What a session is found by: the secret in the cookie, and the page. Raises `AnswerError` without a cookie."""
    secret = request.cookies.get(http_guard.COOKIE)
    if not secret:
        raise AnswerError(NO_COOKIE)
    return f"{secret}/{request.session_hash}"


def _number(event: gr.EventData, session: Session) -> int | None:
    """The scan that an event of the browser names; None where there is no such scan."""
    number = getattr(event, "number", None)
    return number if isinstance(number, int) and 1 <= number <= len(session.scans) else None


def _choice(event: gr.EventData, session: Session) -> tuple[int, dict[str, Any]]:
    """The scan and what is chosen of it. Raises `AnswerError` where neither was offered."""
    number, series, volume = _number(event, session), getattr(event, "series", None), getattr(event, "volume", None)
    if number is None:
        raise AnswerError("There is no such scan.")
    about = session.scans[number - 1].about
    if series is not None and series in [choice["value"] for choice in about["series_choices"]]:
        return number, {"series": series}
    if isinstance(volume, int) and volume in [choice["value"] for choice in about["volume_choices"]]:
        chosen = {key: value for key, value in about.get("chosen", {}).items() if key == "series"}
        return number, {**chosen, "volume": volume}
    raise AnswerError("There is no such series or volume.")
