"""Scores of the demo checkpoint on the `val` rows, with baselines.

Every number is per pack, with a 95 % Wilson interval: greedy answers of the model, label heads on the same tower, a plain
ViT classifier, answers about a black image, and the most frequent answer of the training rows.
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
from .qa_templates import OPEN, QA, YES_OR_NO, answerable_labels, closed_question
from .stage1_vision import Classifier

OPEN_QUESTIONS = {name: wordings[0] for name, wordings in OPEN.items()}
PACKS = ("mednist", "ct_planes_nysbu", "mr_volumes", "brain_tumor_t1ce", "busi_breast_us", "pneumoniamnist_28")
YES_NO_LABELS = {"yes/no": ("modality", "body_part", "plane", "sequence", "dims"), "yes/no, finding": ("finding",)}
# Two names of one thing count as the same answer.
SYNONYMS = ({"brain", "head"}, {"frontal", "coronal"})


@dataclass
class Score:
    """Right answers out of `count` questions about one label of one pack, by the model and by each baseline."""

    pack: str
    label: str
    count: int
    model: int
    heads: int | None = None
    vit: int | None = None
    blank: int | None = None
    most_frequent: int | None = None


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    share, scale = right / count, 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (share + z * z / (2 * count) - half) / scale, (share + z * z / (2 * count) + half) / scale


class GreedyAnswerer:
    """Greedy answers of a model about samples, in batches."""

    def __init__(self, model: RadFMForConditionalGeneration, processor: RadFMProcessor):
        self.model, self.processor = model, processor

    def blank(self, samples: list[Sample], questions: list[str]) -> list[str]:
        """The answers about black scans of the same shapes: what the question alone gives away."""
        unique = {(s.pixels.shape, q): (s, q) for s, q in zip(samples, questions, strict=True)}
        black = [replace(s, pixels=torch.zeros_like(s.pixels)) for s, _ in unique.values()]
        answers = dict(zip(unique, self(black, [q for _, q in unique.values()]), strict=True))
        return [answers[s.pixels.shape, q] for s, q in zip(samples, questions, strict=True)]

    @torch.inference_mode()
    def __call__(self, samples: list[Sample], questions: list[str]) -> list[str]:
        """One answer per sample and question, in lower case."""
        answers: list[str] = []
        for first in track(range(0, len(samples), 48), "asking", transient=True):
            pixels = [s.pixels.float() / 255 for s in samples[first : first + 48]]
            texts = [self.processor.full_image_sequence + q for q in questions[first : first + 48]]
            inputs = self.processor(text=texts, padding=True, return_tensors="pt")
            output_ids = self.model.generate(**inputs, pixel_values=pixels, max_new_tokens=16, do_sample=False)
            answer_ids = output_ids[:, inputs["input_ids"].shape[1] :]
            answers += [a.strip().lower() for a in self.processor.batch_decode(answer_ids, skip_special_tokens=True)]
        return answers


def evaluate(
    model: RadFMForConditionalGeneration,
    processor: RadFMProcessor,
    classifier: Classifier,
    vit: PlainViT | None,
    samples: list[Sample],
) -> list[Score]:
    """Scores on the `val` samples, pack by pack and label by label."""
    answers, scores = GreedyAnswerer(model.eval(), processor), []
    train = [s for s in samples if s.split == "train"]
    for pack in PACKS:
        held_out = [s for s in samples if s.pack == pack and s.split == "val"]
        seen = [s for s in train if s.pack == pack]
        for label in ("modality", "body_part", "plane", "sequence", "dims", "finding"):
            known = [s for s in held_out if label in answerable_labels(s)]
            if not known or (label == "sequence" and pack == "brain_tumor_t1ce"):
                continue
            truth = [answerable_labels(s)[label].lower() for s in known]
            in_training = Counter(answerable_labels(s)[label].lower() for s in seen if label in answerable_labels(s))
            most_frequent = in_training.most_common(1)[0][0]
            question = [OPEN_QUESTIONS[label]] * len(known)
            head = pack if label == "finding" else label
            scores.append(
                Score(
                    pack,
                    label,
                    len(known),
                    model=_right(answers(known, question), truth),
                    heads=_right(_classes(classifier, known, head), truth) if head in LABELS else None,
                    vit=_right(_classes(vit, known, head), truth) if vit and head in LABELS else None,
                    blank=_right(answers.blank(known, question), truth),
                    most_frequent=_right([most_frequent] * len(known), truth),
                )
            )
        scores += _closed(answers, pack, held_out)
    return scores


def _closed(answers: GreedyAnswerer, pack: str, held_out: list[Sample]) -> list[Score]:
    """Yes/no questions, half with each answer: about the labels of the acquisition, and about the finding."""
    scores = []
    rng = random.Random(7)
    for kind, labels in YES_NO_LABELS.items():
        qa_pairs: list[tuple[Sample, QA]] = []
        for number, sample in enumerate(held_out):
            possible = [label for label in labels if label in answerable_labels(sample)]
            if (possible and pack in FINDINGS) or kind == "yes/no":
                label = possible[number // 2 % len(possible)]
                qa = closed_question(sample, label, number % 2 == 0, rng)
                qa_pairs.append((sample, replace(qa, question=qa.question.removesuffix(YES_OR_NO) + YES_OR_NO)))
        if qa_pairs:
            samples, truth = [s for s, _ in qa_pairs], [qa.answer for _, qa in qa_pairs]
            questions = [qa.question for _, qa in qa_pairs]
            constant = max(Counter(truth).values())
            right, blank = (_right(reply(samples, questions), truth) for reply in (answers, answers.blank))
            scores.append(Score(pack, kind, len(qa_pairs), right, blank=blank, most_frequent=constant))
    return scores


def _right(answers: list[str], truth: list[str]) -> int:
    return sum(a == t or any({a, t} <= same for same in SYNONYMS) for a, t in zip(answers, truth, strict=True))


@torch.inference_mode()
def _classes(classifier: Any, samples: list[Sample], label: str) -> list[str]:
    values = []
    for first in range(0, len(samples), 64):
        logits = classifier([s.pixels.float() / 255 for s in samples[first : first + 64]])[label]
        values += [LABELS[label][i].lower() for i in logits.argmax(-1).tolist()]
    return values


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table, in per cent."""

    def percent(right: int | None, count: int) -> str:
        return "" if right is None else f"{100 * right / count:.0f}"

    lines = [
        "| pack | question about | n | RadFM | 95 % | label heads | plain ViT | blank image | most frequent |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        low, high = interval(s.model, s.count)
        others = " | ".join(percent(right, s.count) for right in (s.heads, s.vit, s.blank, s.most_frequent))
        model = f"**{percent(s.model, s.count)}** | {100 * low:.0f}–{100 * high:.0f}"
        lines.append(f"| {s.pack} | {s.label} | {s.count} | {model} | {others} |")
    return "\n".join(lines)


def save(scores: list[Score], file: Path) -> None:
    """Write the counts as JSON, and the table as Markdown under the same name."""
    file.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    file.with_suffix(".md").write_text(table(scores) + "\n")
