"""What the demo checkpoint is worth on scans that it never saw, beside what can be had without looking.

Every number is per pack, with a 95 % interval (Wilson): what the words say, what label heads on the same tower say, a plain
ViT classifier, the words about a blank image, and the most frequent answer of the training rows.
"""

import json
import math
import random
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from .baseline import PlainViT
from .datasets import FINDINGS, LABELS, Sample
from .qa_templates import OPEN, YES_OR_NO, Asked, ask_closed, known_of
from .stage1_vision import Classifier

ASKED = {name: wordings[0] for name, wordings in OPEN.items()}
PACKS = ("mednist", "ct_planes_nysbu", "mr_volumes", "brain_tumor_t1ce", "busi_breast_us", "pneumoniamnist_28")
# Labels that are words of one thing count as the same answer.
SAME = ({"brain", "head"}, {"frontal", "coronal"})


@dataclass
class Score:
    """How many of `asked` questions about one label of one pack were answered right, and by what."""

    pack: str
    about: str
    asked: int
    words: int
    heads: int | None = None
    vit: int | None = None
    blank: int | None = None
    most_frequent: int | None = None


def interval(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, spread = right / asked, 1 + z * z / asked
    half = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return (share + z * z / (2 * asked) - half) / spread, (share + z * z / (2 * asked) + half) / spread


class Answers:
    """Greedy answers of a model about samples, many questions at once."""

    def __init__(self, model: RadFMForConditionalGeneration, processor: RadFMProcessor):
        self.model, self.processor = model, processor

    def blank(self, samples: list[Sample], questions: list[str]) -> list[str]:
        """The answers about black scans of the same shapes: what a question is worth without looking."""
        asked = {(s.pixels.shape, q): (s, q) for s, q in zip(samples, questions, strict=True)}
        black = [replace(s, pixels=torch.zeros_like(s.pixels)) for s, _ in asked.values()]
        said = dict(zip(asked, self(black, [q for _, q in asked.values()]), strict=True))
        return [said[s.pixels.shape, q] for s, q in zip(samples, questions, strict=True)]

    @torch.inference_mode()
    def __call__(self, samples: list[Sample], questions: list[str]) -> list[str]:
        """One answer a sample and question."""
        answers: list[str] = []
        for first in track(range(0, len(samples), 48), "asking", transient=True):
            pixels = [s.pixels.float() / 255 for s in samples[first : first + 48]]
            texts = [self.processor.full_image_sequence + q for q in questions[first : first + 48]]
            inputs = self.processor(text=texts, padding=True, return_tensors="pt")
            said = self.model.generate(**inputs, pixel_values=pixels, max_new_tokens=16, do_sample=False)
            said = said[:, inputs["input_ids"].shape[1] :]
            answers += [a.strip().lower() for a in self.processor.batch_decode(said, skip_special_tokens=True)]
        return answers


def evaluate(
    model: RadFMForConditionalGeneration,
    processor: RadFMProcessor,
    classifier: Classifier,
    vit: PlainViT | None,
    samples: list[Sample],
) -> list[Score]:
    """Scores on the `val` samples, pack by pack and label by label."""
    answers, scores = Answers(model.eval(), processor), []
    train = [s for s in samples if s.split == "train"]
    for pack in PACKS:
        held_out = [s for s in samples if s.pack == pack and s.split == "val"]
        seen = [s for s in train if s.pack == pack]
        for about in ("modality", "body_part", "plane", "sequence", "dims", "finding"):
            known = [s for s in held_out if about in known_of(s)]
            if not known or (about == "sequence" and pack == "brain_tumor_t1ce"):
                continue
            truth = [known_of(s)[about].lower() for s in known]
            frequent = Counter(known_of(s)[about].lower() for s in seen if about in known_of(s)).most_common(1)[0][0]
            question = [ASKED[about]] * len(known)
            label = pack if about == "finding" else about
            scores.append(
                Score(
                    pack,
                    about,
                    len(known),
                    words=_right(answers(known, question), truth),
                    heads=_right(_classes(classifier, known, label), truth) if label in LABELS else None,
                    vit=_right(_classes(vit, known, label), truth) if vit and label in LABELS else None,
                    blank=_right(answers.blank(known, question), truth),
                    most_frequent=_right([frequent] * len(known), truth),
                )
            )
        scores += _closed(answers, pack, held_out)
    return scores


def _closed(answers: Answers, pack: str, held_out: list[Sample]) -> list[Score]:
    """Yes-or-no questions, as many with each answer; about what a scan is, and about its finding."""
    scores = []
    rng = random.Random(7)
    for kind, abouts in (
        ("yes/no", ("modality", "body_part", "plane", "sequence", "dims")),
        ("yes/no, finding", ("finding",)),
    ):
        asked: list[tuple[Sample, Asked]] = []
        for number, sample in enumerate(held_out):
            possible = [about for about in abouts if about in known_of(sample)]
            if (possible and pack in FINDINGS) or kind == "yes/no":
                about = possible[number // 2 % len(possible)]
                one = ask_closed(sample, about, number % 2 == 0, rng)
                asked.append((sample, Asked(one.question.removesuffix(YES_OR_NO) + YES_OR_NO, one.answer, about, True)))
        if asked:
            samples, truth = [s for s, _ in asked], [a.answer for _, a in asked]
            questions = [a.question for _, a in asked]
            constant = max(Counter(truth).values())
            said, unseen = answers(samples, questions), answers.blank(samples, questions)
            scores.append(
                Score(pack, kind, len(asked), _right(said, truth), blank=_right(unseen, truth), most_frequent=constant)
            )
    return scores


def _right(said: list[str], truth: list[str]) -> int:
    return sum(a == t or any({a, t} <= same for same in SAME) for a, t in zip(said, truth, strict=True))


@torch.inference_mode()
def _classes(classifier: Any, samples: list[Sample], label: str) -> list[str]:
    said = []
    for first in range(0, len(samples), 64):
        logits = classifier([s.pixels.float() / 255 for s in samples[first : first + 64]])[label]
        said += [LABELS[label][i].lower() for i in logits.argmax(-1).tolist()]
    return said


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table, in per cent."""

    def share(right: int | None, asked: int) -> str:
        return "" if right is None else f"{100 * right / asked:.0f}"

    lines = [
        "| pack | asked about | n | words | 95 % | label heads | plain ViT | blank image | most frequent |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        low, high = interval(s.words, s.asked)
        others = " | ".join(share(right, s.asked) for right in (s.heads, s.vit, s.blank, s.most_frequent))
        words = f"**{share(s.words, s.asked)}** | {100 * low:.0f}–{100 * high:.0f}"
        lines.append(f"| {s.pack} | {s.about} | {s.asked} | {words} | {others} |")
    return "\n".join(lines)


def save(scores: list[Score], file: Path) -> None:
    """Write the counts as JSON and the table beside them."""
    file.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    file.with_suffix(".md").write_text(table(scores) + "\n")
