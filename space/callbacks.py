"""What happens on the page and in the API when a visitor does something."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr

import markup
import overlay
import viewer
from examples import EXAMPLES
from reader_process import Stored
from remote_code import AnswerError, Repository
from sessions import Session, Sessions, Turn, described

NO_SCAN = "Drop a scan first, or take an example."
KEEP = gr.skip()
REMEMBER_SECONDS = 600.0


class Space:
    """What happens when a visitor does something; each handler takes the request to know whose session it is."""

    def __init__(self, model_id: str, work: Path):
        """Start loading the model, beside which the page can be opened and scans be read."""
        self.repository = Repository(model_id)
        self.sessions = Sessions(work)
        self._answers = ThreadPoolExecutor(1).submit(self._load)
        self._read_before: dict[str, list[Stored]] = {}

    def _load(self) -> Any:
        # torch takes seconds to import.
        from inference import Answers

        return Answers(self.repository)

    @property
    def answers(self) -> Any:
        """The model, as soon as it is there."""
        return self._answers.result()

    def session(self, request: gr.Request) -> Session:
        """The visitor's own."""
        return self.sessions.of(request.session_hash or "")

    def show(self, files: list[str] | None, request: gr.Request) -> Iterator[tuple]:
        """Read dropped files → notice, drop zone, chips, viewer, facts, downloads."""
        paths = [Path(file) for file in files or []]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield markup.notice(f"Reading {paths[0].name}{more} …"), *[KEEP] * 5
        session = self.session(request)
        known = len(session.scans)
        try:
            refused = session.read(paths, self.repository.reader)
        except AnswerError as error:
            refused = [str(error)]
        if session.closed:
            return
        warned = [f"{scan.name}: {warning}" for scan in session.scans[known:] for warning in scan.about["warnings"]]
        said = markup.notice(" ".join(refused + warned), bad=bool(refused))
        if len(session.scans) == known:
            yield said, None, *[KEEP] * 4
        else:
            session.current = len(session.scans)
            yield said, None, *self.look(session)

    def example(self, label: str, request: gr.Request) -> Iterator[tuple]:
        """Read a scan that libraries bring → as `show`, and the question to ask about it."""
        for outputs in self.show([str(EXAMPLES[label].file)], request):
            yield *outputs, EXAMPLES[label].question

    def look(self, session: Session) -> tuple:
        """Chips, viewer, facts and downloads of the scan that is looked at."""
        stored = session.scans[session.current - 1]
        names = [scan.name for scan in session.scans]
        facts = markup.facts_table(viewer.facts(stored.name, stored.about))
        return markup.chips(names, session.current), self.value(session), facts, self.downloads(session)

    def downloads(self, session: Session) -> str:
        """Links to what can be taken along."""
        return markup.downloads(session.downloads(self.repository.model_id))

    def value(self, session: Session) -> dict[str, Any]:
        """What the viewer is told of the scan that is looked at."""
        stored = session.scans[session.current - 1]
        scan = stored.load(self.repository.scan_class)
        return viewer.viewer_value(session.current, stored, scan, self.repository.to_radiological_view(scan), markup.address)

    def select(self, event: gr.EventData, request: gr.Request) -> tuple:
        """Another chip → chips, viewer, facts, downloads."""
        session = self.session(request)
        if not 1 <= event.number <= len(session.scans):
            return KEEP, KEEP, KEEP, KEEP
        session.current = event.number
        return self.look(session)

    def flat(self, event: gr.EventData, request: gr.Request) -> Any:
        """Slices for a browser without WebGL2 → viewer."""
        session = self.session(request)
        if not 1 <= event.number <= len(session.scans):
            return KEEP
        session.current = event.number
        stored = session.scans[session.current - 1]
        value = self.value(session)
        first = value["windows"][0] if value["windows"] else {"low": 0.0, "high": 255.0}
        low, high = (event._data.get(end, first[end]) for end in ("low", "high"))
        hung = self.repository.to_radiological_view(stored.load(self.repository.scan_class))
        pictures = viewer.draw_slices(hung, (low, high), stored.folder / f"slices-{low:g}-{high:g}")
        return {**value, "pictures": [markup.address(file) for file in pictures]}

    def ask(self, question: str, request: gr.Request) -> Iterator[tuple]:
        """A question → chat, question box, ask and stop buttons, downloads; again and again as the answer grows."""
        session = self.session(request)
        if not question.strip():
            yield KEEP, KEEP, KEEP, KEEP, KEEP
            return
        if not session.scans:
            yield markup.conversation([Turn(question, NO_SCAN)]), question, KEEP, KEEP, KEEP
            return
        busy = gr.update(interactive=False), gr.update(interactive=True)
        idle = gr.update(interactive=True), gr.update(interactive=False)
        turn = Turn(question)
        try:
            for turn in session.ask(question, self.answers, self.repository.scan_class):
                earlier = [other for other in session.turns if other is not turn]
                yield markup.conversation([*earlier, turn]), "", *busy, KEEP
        except AnswerError as error:
            yield markup.conversation([*session.turns, Turn(turn.question, str(error))]), question, *idle, KEEP
            return
        if not session.closed:
            yield markup.conversation(session.turns), "", *idle, self.downloads(session)

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being given."""
        self.session(request).stop.touch()

    def where(self, request: gr.Request) -> tuple:
        """The attention over the scan that is looked at → viewer, downloads, notice."""
        session = self.session(request)
        if not session.scans:
            return KEEP, KEEP, markup.notice(NO_SCAN, bad=True)
        stored = session.scans[session.current - 1]
        scan = stored.load(self.repository.scan_class)
        try:
            attention = self.answers.attention(scan).numpy()
        except AnswerError as error:
            return KEEP, KEEP, markup.notice(str(error), bad=True)
        values, affine = overlay.on_the_scan(attention, scan, self.answers.loaded[1].image_processor)
        overlay.write(values, affine, stored.folder / "overlay.nii.gz")
        stored.about["brightest"] = float(values.max())
        return self.value(session), self.downloads(session), ""

    def restart(self, request: gr.Request) -> tuple:
        """Forget scans and conversation → notice, drop zone, chips, viewer, facts, downloads, chat."""
        self.sessions.end(request.session_hash or "")
        return "", None, "", None, "", "", []

    def leave(self, request: gr.Request) -> None:
        """The visitor is gone."""
        self.sessions.end(request.session_hash or "")

    def sweep(self, upload_seconds: float) -> None:
        """Delete old uploads, and forget the scans that nobody asked about for a while."""
        self.sessions.sweep(upload_seconds)
        if self._answers.done():
            self.answers.forget(REMEMBER_SECONDS)
            for content, scans in list(self._read_before.items()):
                if not all(self.answers.knows(scan.about["key"]) for scan in scans):
                    self._read_before.pop(content)

    def answer(self, files: list[str], question: str) -> dict[str, Any]:
        """Ask about radiology scans: DICOM, a zipped DICOM series, NIfTI or pictures.

        Args:
            files: the scans; several DICOM files of one series are one scan.
            question: what to ask, in English; [1] in it is the place of the first scan.

        Returns:
            model, question, answer, yes (its probability against no), scans (name, modality, shape, spacing) and seconds.
        """
        start = time.monotonic()
        session = self.sessions.new()
        try:
            paths = [Path(file) for file in files or []]
            content = _content(paths)
            known = self._read_before.get(content, [])
            if known and all(self.answers.knows(scan.about["key"]) for scan in known):
                session.scans, refused = known, []
            else:
                refused = session.read(paths, self.repository.reader)
            if refused or not session.scans:
                raise gr.Error(" ".join(refused) or NO_SCAN, print_exception=False)
            *_, turn = session.ask(question, self.answers, self.repository.scan_class)
            self._read_before[content] = session.scans
            return {
                "model": Path(self.repository.model_id).name,
                "question": question,
                "answer": turn.answer,
                "yes": turn.yes,
                "scans": [described(scan) for scan in session.scans],
                "seconds": round(time.monotonic() - start, 2),
            }
        except AnswerError as error:
            raise gr.Error(str(error), print_exception=False) from error
        finally:
            shutil.rmtree(session.folder, ignore_errors=True)

    def ask_about_scan(self, scan: str, question: str) -> str:
        """Ask a radiology model about one scan. For research; no medical device.

        Args:
            scan: a DICOM file, a zip of a DICOM series, a NIfTI volume or a picture.
            question: what to ask, in English.

        Returns:
            JSON: model, question, answer, yes (its probability against no), scans (name, modality, shape, spacing), seconds.
        """
        return json.dumps(self.answer([scan] if scan else [], question))


def _content(files: list[Path]) -> str:
    """A hash of files' names and bytes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode())
        if file.exists():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
