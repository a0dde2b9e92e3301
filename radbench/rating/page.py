"""The rating page: scan, question, reference, and the answers of several models without names, in Gradio.

Keys, outside of text fields: 0 to 5 rate the first answer that has no rating (or the one that has the focus), n and p go to
the next and previous question, the arrows up and down move through the slices, r goes to the reason of the last rated
answer, Escape leaves it.
"""

from dataclasses import dataclass, replace
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from ..items import BenchError
from .questions import Rating
from .slices import SliceReader
from .store import HIGHEST, LOWEST, Click, RatingStore

ASSETS = Path(__file__).parent
LETTERS = "ABCDEFGHIJ"
SCALE = "0 useless or dangerous · 1 mostly wrong · 2 half wrong · 3 acceptable · 4 good · 5 as good as the reference"


@dataclass(frozen=True)
class Place:
    """Where a rater is: the name, the index of the question, and how many questions the page had shown before."""

    rater: str
    index: int
    shown: int = 0


class RatingPage:
    """What the page's events call.

    Args:
        rating: the questions.
        store: where clicks go.
        slices: the scans.
    """

    def __init__(self, rating: Rating, store: RatingStore, slices: SliceReader):
        self.rating, self.store, self.slices = rating, store, slices
        self._shown = count(1)

    def start(self, rater: str) -> list[Any]:
        """Open the first question that the rater has not rated whole; the last one where all are."""
        try:
            known = self.store.load(rater.strip())
        except BenchError as error:
            raise gr.Error(str(error)) from error
        open_ = (
            index
            for index, question in enumerate(self.rating.questions)
            if any((question.item, model) not in known for model in question.answers)
        )
        return self.show(Place(rater.strip(), next(open_, len(self.rating.questions) - 1)))

    def move(self, place: Place, step: int) -> list[Any]:
        """Open the question `step` further on, within the list."""
        index = min(max(place.index + step, 0), len(self.rating.questions) - 1)
        return self.show(Place(place.rater, index))

    def show(self, place: Place) -> list[Any]:
        """The values of all components (`_outputs`) for a question."""
        place = replace(place, shown=next(self._shown))
        question, known = self.rating.questions[place.index], self.store.load(place.rater)
        try:
            slices = self.slices.read(question.record)
        except BenchError as error:
            raise gr.Error(str(error)) from error
        middle = len(slices) // 2
        values: list[Any] = [
            place,
            gr.update(visible=False),
            gr.update(visible=True),
            self.progress(place),
            slices[middle].html() if slices else "<p>This scan is not in the data set.</p>",
            gr.update(maximum=max(len(slices), 2), value=middle + 1, visible=len(slices) > 1),
            _field("Question", question.text),
            _field("Reference", question.reference),
        ]
        for letter, model in zip(LETTERS, question.blind_order(place.rater, self.rating.seed), strict=False):
            click = known.get((question.item, model))
            values.append(_field(f"Answer {letter}", question.answers[model] or "(no answer)"))
            values += [click.value if click else None, click.reason if click else ""]
        return values

    def slice(self, place: Place, number: float) -> str:
        """The slice that the slider points at, counted from 1."""
        slices = self.slices.read(self.rating.questions[place.index].record)
        return slices[min(max(int(number), 1), len(slices)) - 1].html() if slices else ""

    def save(self, place: Place, answer: int, value: int | None, reason: str) -> str:
        """Keep the rating of an answer, counted in the blind order; returns the progress. None as value keeps nothing."""
        if value is not None:
            question = self.rating.questions[place.index]
            model = question.blind_order(place.rater, self.rating.seed)[answer]
            before = self.store.load(place.rater).get((question.item, model))
            click = Click(place.rater, question.item, model, int(value), reason.strip())
            if click != before:
                self.store.save(click)
        return self.progress(place)

    def progress(self, place: Place) -> str:
        """ "Question 3 of 50 · 2 rated" as HTML; `data-shown` tells keys.js that another question is there."""
        known = self.store.load(place.rater)
        questions = self.rating.questions
        done = sum(all((question.item, model) in known for model in question.answers) for question in questions)
        text = f"Question {place.index + 1} of {len(questions)} · {done} rated"
        return (
            f'<p class="progress" data-shown="{place.shown}" data-done="{done}" data-question="{place.index + 1}">{text}</p>'
        )


def _field(title: str, text: str) -> str:
    return f'<div class="field"><h3>{escape(title)}</h3><p>{escape(text)}</p></div>'


def build(page: RatingPage) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="RadBench: rating of answers") as blocks:
        place = gr.State()
        with gr.Row(elem_id="entry") as entry:
            rater = gr.Textbox(label="Your name or a pseudonym", elem_id="rater", max_length=40)
            start = gr.Button("Start", variant="primary", elem_id="start")
        with gr.Column(visible=False, elem_id="rating") as rating:
            progress = gr.HTML(elem_id="progress")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    image = gr.HTML(elem_id="scan")
                    slider = gr.Slider(1, 2, value=1, step=1, label="Slice", elem_id="slice", visible=False)
                    question, reference = gr.HTML(elem_id="question"), gr.HTML(elem_id="reference")
                with gr.Column(scale=6, min_width=300):
                    gr.HTML(f"<p>{SCALE}</p>", elem_id="scale")
                    answers = [_answer(letter) for letter in LETTERS[: len(page.rating.models)]]
            with gr.Row():
                previous = gr.Button("Previous (p)", elem_id="previous")
                following = gr.Button("Next (n)", variant="primary", elem_id="next")
            gr.HTML(
                "<p>Keys: 0–5 rate · n, p questions · ↑ ↓ slices · r reason · Esc leaves a text field</p>", elem_id="keys"
            )
        outputs = [place, entry, rating, progress, image, slider, question, reference]
        outputs += [component for answer in answers for component in answer]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([start.click, rater.submit], page.start, rater, outputs, **quiet)
        previous.click(lambda at: page.move(at, -1), place, outputs, **quiet)
        following.click(lambda at: page.move(at, 1), place, outputs, **quiet)
        slider.change(page.slice, [place, slider], image, **quiet)
        for number, (_, value, reason) in enumerate(answers):
            # `input` and not `change`: a value that the page sets itself is no click of the rater.
            events = [value.input, reason.blur, reason.submit]
            # "multiple": by default Gradio drops an event that comes while the last one is still being saved.
            gr.on(
                events,
                lambda at, v, r, n=number: page.save(at, n, v, r),
                [place, value, reason],
                progress,
                trigger_mode="multiple",
                **quiet,
            )
    return blocks


def _answer(letter: str) -> tuple[gr.HTML, gr.Radio, gr.Textbox]:
    with gr.Group(elem_id=f"answer-{letter}"):
        text = gr.HTML()
        value = gr.Radio(list(range(LOWEST, HIGHEST + 1)), label=f"Rating of answer {letter}", elem_classes="value")
        reason = gr.Textbox(label=f"Reason for {letter}, if you like", lines=1, max_length=500, elem_classes="reason")
    return text, value, reason


def serve(rating: Rating, out: Path, data: Path, port: int | None, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Serve the page on this machine; returns when it is stopped, or at once without `wait`: the page, its address."""
    slices = SliceReader(data, {question.record for question in rating.questions})
    blocks = build(RatingPage(rating, RatingStore(out), slices))
    _, address, _ = blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        theme=gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=[ASSETS / "page.css"],
        head=f"<script>{(ASSETS / 'keys.js').read_text(encoding='utf-8')}</script>",
        footer_links=[],
    )
    print(f"rate at {address}; ratings are kept in {out}")
    if wait:
        blocks.block_thread()
    return blocks, address
