"""Scores of the demo checkpoint on the validation rows, with baselines, and findings that it names where none is known.

    python -m radfm.training.demo.evaluate radfm-lora demo-data    # a model or adapters, on a data set of the source `demo`

Every number is per pack, with a 95 % Wilson interval: greedy answers of the model, its answers about a black image, and
the most frequent answer of the training rows.
"""

import json
import math
import random
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from transformers import AutoModelForImageTextToText

from radfm.medmd.prompts import CLOSED, article
from radfm.medmd.questions import VALUES, names_that_clash
from radfm.medmd.sources.demo import FINDINGS, UNKNOWN, YES_OR_NO
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from .checkpoint import image_processor
from .scans import ACQUISITION, DemoScan, read_scans

QUESTIONS = {
    "modality": "Which imaging modality is this?",
    "body_part": "Which body part is shown?",
    "plane": "In which plane is this scan?",
    "sequence": "Which MR sequence is this?",
    "dims": "Is this scan 2D or 3D?",
    "finding": "What is the finding?",
    "report": "Write a report of this scan.",
    "rationale": "What is the diagnosis, and what in the scan shows it?",
}
COMPOSED = ("report", "rationale")
NAMED = tuple(sorted({name for names in FINDINGS.values() for name in names} - {"normal"}))
SYNONYMS = ({"brain", "head"}, {"frontal", "coronal"})
BATCH, LONGEST_ANSWER = 48, 72


@dataclass(frozen=True)
class Score:
    """Right answers out of `count` questions about one label of one pack, by the model and by each baseline.

    Three labels count faults: "false finding" of normal scans, "finding named" of scans whose pack knows none, and
    "uncertain" of scans whose finding was learned.
    """

    pack: str
    label: str
    count: int
    model: int
    blank: int | None = None
    most_frequent: int | None = None


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    share, scale = right / count, 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (share + z * z / (2 * count) - half) / scale, (share + z * z / (2 * count) + half) / scale


class GreedyAnswerer:
    """Greedy answers of a model about scans, in batches."""

    def __init__(self, model: RadFMForConditionalGeneration, processor: RadFMProcessor):
        self.model, self.processor = model, processor

    def blank(self, scans: list[DemoScan], questions: list[str]) -> list[str]:
        """The answers about black scans of the same shapes: what the question alone gives away."""
        unique = {(s.pixels.shape, q): (s, q) for s, q in zip(scans, questions, strict=True)}
        black = [replace(s, pixels=torch.zeros_like(s.pixels)) for s, _ in unique.values()]
        answers = dict(zip(unique, self(black, [q for _, q in unique.values()]), strict=True))
        return [answers[s.pixels.shape, q] for s, q in zip(scans, questions, strict=True)]

    @torch.inference_mode()
    def __call__(self, scans: list[DemoScan], questions: list[str]) -> list[str]:
        """One answer per scan and question, in lower case."""
        answers: list[str] = []
        for first in track(range(0, len(scans), BATCH), "asking", transient=True):
            pixels = [s.pixels.float() / 255 for s in scans[first : first + BATCH]]
            texts = [self.processor.full_image_sequence + q for q in questions[first : first + BATCH]]
            inputs = self.processor(text=texts, padding=True, padding_side="left", return_tensors="pt")
            output_ids = self.model.generate(**inputs, pixel_values=pixels, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            answer_ids = output_ids[:, inputs["input_ids"].shape[1] :]
            answers += [a.strip().lower() for a in self.processor.batch_decode(answer_ids, skip_special_tokens=True)]
        return answers


def known_labels(scan: DemoScan) -> dict[str, str]:
    """The labels that a question can be about; "finding" is the finding of any pack."""
    known = {name: scan.labels[name] for name in ACQUISITION if name in scan.labels}
    known["dims"] = "3D" if scan.is_volume else "2D"
    return {**known, "finding": scan.finding} if scan.finding else known


def evaluate(
    model: RadFMForConditionalGeneration, processor: RadFMProcessor, train: list[DemoScan], held_out: list[DemoScan]
) -> list[Score]:
    """Scores on the held-out scans, pack by pack and label by label; slices of volumes count for unknown findings alone."""
    answers, scores = GreedyAnswerer(model.eval(), processor), []
    for pack in dict.fromkeys(scan.pack for scan in held_out):
        whole = [s for s in held_out if s.pack == pack and s.kind != "slices"]
        seen = [known_labels(s) for s in train if s.pack == pack and s.kind != "slices"]
        for label in (*ACQUISITION, "dims", "finding"):
            of_label = [(s, known_labels(s)[label].lower()) for s in whole if label in known_labels(s)]
            counts = Counter(known[label].lower() for known in seen if label in known)
            if of_label and len(counts) > (label in ("sequence", "finding")):
                scores.append(_score(answers, pack, label, of_label, counts.most_common(1)[0][0]))
        scores += _closed(answers, pack, whole)
        scores += _about_findings(answers, pack, [s for s in held_out if s.pack == pack])
    return scores


def _score(answers: GreedyAnswerer, pack: str, label: str, cases: list[tuple[DemoScan, str]], constant: str) -> Score:
    scans, truth = [scan for scan, _ in cases], [value for _, value in cases]
    questions = [QUESTIONS[label]] * len(scans)
    right, blank = (_right(reply(scans, questions), truth) for reply in (answers, answers.blank))
    return Score(pack, label, len(scans), right, blank, _right([constant] * len(scans), truth))


def _closed(answers: GreedyAnswerer, pack: str, scans: list[DemoScan]) -> list[Score]:
    """Yes/no questions, half with each answer: about the labels of the acquisition, and about the finding."""
    scores, rng = [], random.Random(7)
    for kind, labels in (("yes/no", ACQUISITION), ("yes/no, finding", ("finding",))):
        cases: list[tuple[DemoScan, str, str]] = []
        for number, scan in enumerate(scans):
            possible = [label for label in labels if label in known_labels(scan)]
            if possible:
                label = possible[number // 2 % len(possible)]
                value, answer = known_labels(scan)[label], ("yes", "no")[number % 2]
                if answer == "no":
                    values = FINDINGS[pack] if label == "finding" else VALUES[label]
                    excluded = names_that_clash(value)
                    value = rng.choice([other for other in values if other not in excluded])
                wordings = CLOSED["normal" if value == "normal" else "diagnosis" if label == "finding" else label]
                cases.append((scan, rng.choice(wordings).format(a=article(value), value=value) + YES_OR_NO, answer))
        if cases:
            case_scans, questions, truth = [c[0] for c in cases], [c[1] for c in cases], [c[2] for c in cases]
            right, blank = (_right(reply(case_scans, questions), truth) for reply in (answers, answers.blank))
            scores.append(Score(pack, kind, len(cases), right, blank, max(Counter(truth).values())))
    return scores


def _about_findings(answers: GreedyAnswerer, pack: str, scans: list[DemoScan]) -> list[Score]:
    """Whether composed texts name the right finding, and how often a finding is named that is not there or not known."""
    scores = []
    for label in ("finding", *COMPOSED):
        shown = [s for s in scans if s.finding or label == "finding"]
        replies = answers(shown, [QUESTIONS[label]] * len(shown)) if shown else []
        known = [(s, reply) for s, reply in zip(shown, replies, strict=True) if s.finding]
        if known and label in COMPOSED:
            right = sum(_named(reply) == {s.finding} - {"normal"} and _assessed(reply) for s, reply in known)
            scores.append(Score(pack, label, len(known), right))
        if normal := [reply for s, reply in known if s.finding == "normal"]:
            scores.append(Score(pack, f"false finding, {label}", len(normal), sum(bool(_named(reply)) for reply in normal)))
        if known and label == "finding":
            scores.append(Score(pack, "uncertain", len(known), sum(not _assessed(reply) for _, reply in known)))
        for kind in dict.fromkeys(s.kind for s in shown if not s.finding):
            of_kind = [reply for s, reply in zip(shown, replies, strict=True) if s.kind == kind]
            where = " (slices)" if kind == "slices" else ""
            scores.append(Score(pack, f"finding named{where}", len(of_kind), sum(bool(_named(reply)) for reply in of_kind)))
    return scores


def _named(reply: str) -> set[str]:
    """The findings that a reply names."""
    return {name for name in NAMED if name in reply}


def _assessed(reply: str) -> bool:
    return UNKNOWN.split(":")[0] not in reply


def _right(answers: list[str], truth: list[str]) -> int:
    return sum(a == t or any({a, t} <= same for same in SYNONYMS) for a, t in zip(answers, truth, strict=True))


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table, in per cent."""

    def percent(right: int | None, count: int) -> str:
        return "" if right is None else f"{100 * right / count:.0f}"

    lines = ["| pack | question about | n | RadFM | 95 % | blank image | most frequent |", "|---|---|---|---|---|---|---|"]
    for s in scores:
        low, high = interval(s.model, s.count)
        others = " | ".join(percent(right, s.count) for right in (s.blank, s.most_frequent))
        model = f"**{percent(s.model, s.count)}** | {100 * low:.0f}–{100 * high:.0f}"
        lines.append(f"| {s.pack} | {s.label} | {s.count} | {model} | {others} |")
    return "\n".join(lines)


def save(scores: list[Score], file: Path) -> None:
    """Write the counts as JSON, and the table as Markdown under the same name."""
    file.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    file.with_suffix(".md").write_text(table(scores) + "\n")


def thin_out(scans: list[DemoScan], at_most: int) -> list[DemoScan]:
    """At most so many scans of each pack and kind, evenly spread."""
    groups: dict[tuple[str, str], list[DemoScan]] = {}
    for scan in scans:
        groups.setdefault((scan.pack, scan.kind), []).append(scan)
    return [scan for group in groups.values() for scan in group[:: math.ceil(len(group) / at_most)]]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a model with the demo checkpoint's image sizes, or of adapters.")],
    data: Annotated[Path, typer.Argument(help="A data set of the source `demo`.")],
    scans: Annotated[Path, typer.Option(help="Folder that keeps decoded scans.")] = Path("demo-scans"),
    out: Annotated[Path | None, typer.Option(help="JSON file for the counts; the table goes beside it.")] = None,
    at_most: Annotated[int | None, typer.Option(min=1, help="Score so many scans of a kind, evenly spread.")] = None,
) -> None:
    """Score a model on the validation rows, and print a table.

    Examples:

      python -m radfm.training.demo.evaluate radfm-lora demo-data --scans radfm-demo/scans
    """
    answering: Any = AutoModelForImageTextToText.from_pretrained(model, trust_remote_code=True)
    train, held_out = (read_scans(str(data), split, image_processor(), scans) for split in ("train", "validation"))
    if at_most is not None:
        held_out = thin_out(held_out, at_most)
    scores = evaluate(answering, RadFMProcessor.from_pretrained(model), train, held_out)
    if out is not None:
        save(scores, out)
    print(table(scores))


if __name__ == "__main__":
    typer.run(main)
