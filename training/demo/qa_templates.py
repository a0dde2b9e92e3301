"""Question and answer templates for a sample, and the tokenizer that is trained on them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .datasets import FINDINGS, LABELS, Sample

OPEN = {
    "modality": (
        "Which imaging modality is this?",
        "What imaging modality was used?",
        "What modality is this scan?",
        "What kind of scan is this?",
        "How was this image made?",
        "Which modality was used to acquire this scan?",
        "Name the imaging modality.",
    ),
    "body_part": (
        "Which body part is shown?",
        "What body part is this?",
        "Which part of the body does this scan show?",
        "What part of the body was scanned?",
        "Which organ or region is seen here?",
        "Name the body part.",
    ),
    "plane": (
        "In which plane is this scan?",
        "Which plane is shown?",
        "What is the imaging plane?",
        "In what plane was this image taken?",
        "Name the plane of this image.",
    ),
    "sequence": (
        "Which MR sequence is this?",
        "What MRI sequence was used?",
        "Which sequence is this MR image?",
        "What is the sequence of this MRI?",
        "Name the MR sequence.",
    ),
    "dims": (
        "Is this scan 2D or 3D?",
        "Is this a 2D image or a 3D volume?",
        "Does this scan have two or three dimensions?",
        "Is it 2D or 3D?",
    ),
    "finding": (
        "What is the finding?",
        "What does this scan show?",
        "What is the diagnosis?",
        "Which disease is seen here?",
        "What abnormality is present?",
        "Is anything abnormal here, and what?",
        "What do you see in this scan?",
    ),
}
DESCRIBE = ("Describe this scan.", "Describe the image.", "What is this?", "Give a short description of this scan.")
CLOSED = {
    "modality": (
        "Is this {a} {value} scan?",
        "Was this made by {value}?",
        "Is the modality {value}?",
        "Is it {a} {value}?",
    ),
    "body_part": (
        "Is this the {value}?",
        "Does this scan show the {value}?",
        "Is the body part the {value}?",
        "Is this a scan of the {value}?",
    ),
    "plane": (
        "Is this {a} {value} view?",
        "Is the plane {value}?",
        "Is this {a} {value} image?",
        "Is this scan in the {value} plane?",
    ),
    "sequence": ("Is this {a} {value} sequence?", "Is the sequence {value}?", "Is this {a} {value} image?"),
    "dims": ("Is this scan {value}?", "Is this a {value} scan?", "Is it {value}?"),
    "finding": (
        "Does this scan show {a} {value}?",
        "Is there {a} {value}?",
        "Is {a} {value} present?",
        "Is the diagnosis {value}?",
        "Is this {a} {value}?",
        "Can you see signs of {a} {value}?",
    ),
    "normal": ("Is this scan normal?", "Is this normal?", "Is this a normal scan?"),
    "abnormal": ("Is this scan abnormal?", "Is there any abnormality?", "Is anything abnormal here?"),
}
SHORT = (" Answer in a word.", " Answer briefly.")
YES_OR_NO = " Answer yes or no."
# Two names of one thing: neither is used as the wrong value in a yes/no question about the other.
CLASHES = ({"head", "brain"}, {"frontal", "coronal"}, {"abdomen", "pelvis"})
DIMS = ("2D", "3D")


@dataclass
class QA:
    """A question and the answer; `label` is the name of the label, `closed` whether the answer is yes or no."""

    question: str
    answer: str
    label: str
    closed: bool = False


def answerable_labels(sample: Sample) -> dict[str, str]:
    """The labels of a sample that a question can be about, with their values; "finding" is the finding of any pack."""
    known: dict[str, str] = {
        name: sample.labels[name] for name in ("modality", "body_part", "plane", "sequence") if name in sample.labels
    }
    known["dims"] = DIMS[sample.is_volume]
    finding = next((sample.labels[name] for name in FINDINGS if name in sample.labels), None)
    return {**known, "finding": finding} if finding else known


def _with_article(value: str) -> str:
    if value in ("pneumonia",) or value in LABELS["sequence"]:
        return value if value == "pneumonia" else f"a {value}"
    return f"{'an' if value[0] in 'aeioAEIOMX' and value != 'meningioma' else 'a'} {value}"


def _fill(template: str, value: str) -> str:
    return template.replace("{a} {value}", _with_article(value)).replace("{value}", value)


def open_question(sample: Sample, label: str, rng: random.Random) -> QA:
    """A question whose answer is the value of `label`."""
    question = rng.choice(OPEN[label])
    if rng.random() < 0.15:
        question += rng.choice(SHORT)
    return QA(question, answerable_labels(sample)[label], label)


def closed_question(sample: Sample, label: str, truth: bool, rng: random.Random) -> QA:
    """A yes/no question about `label`; with `truth` the right answer is yes."""
    value = answerable_labels(sample)[label]
    if label == "finding" and rng.random() < 0.2:
        word = rng.choice(("normal", "abnormal"))
        question, truth = rng.choice(CLOSED[word]), (word == "normal") == (value == "normal")
    else:
        if not truth:
            value = rng.choice(_wrong_values(sample, label, value, rng))
        question = rng.choice(CLOSED["normal"]) if value == "normal" else _fill(rng.choice(CLOSED[label]), value)
    if rng.random() < 0.5:
        question += YES_OR_NO
    return QA(question, "yes" if truth else "no", label, closed=True)


def _wrong_values(sample: Sample, label: str, value: str, rng: random.Random) -> list[str]:
    """Values that are wrong for `label`; for a finding, 80 % of the draws are of the same organ (the hard ones)."""
    if label == "dims":
        return [d for d in DIMS if d != value]
    if label == "finding":
        pack = next(name for name in FINDINGS if name in sample.labels)
        same = [v for v in LABELS[pack] if v != value]
        other = [v for name in FINDINGS if name != pack for v in LABELS[name] if v not in ("normal", value)]
        return same if rng.random() < 0.8 else other
    return [v for v in LABELS[label] if v != value and not any({v, value} <= clash for clash in CLASHES)]


def describe(sample: Sample, rng: random.Random) -> QA:
    """All known labels in one sentence."""
    known = answerable_labels(sample)
    what = " ".join(known[name] for name in ("dims", "plane", "sequence", "modality") if name in known)
    answer = f"A {what} scan" + (f" of the {known['body_part']}" if "body_part" in known else "")
    return QA(rng.choice(DESCRIBE), answer + (f": {known['finding']}" if "finding" in known else "") + ".", "all")


def questions(sample: Sample, count: int, rng: random.Random) -> list[QA]:
    """`count` questions about a sample; 70 % of them about the finding where there is one."""
    known = answerable_labels(sample)
    qa_pairs: list[QA] = []
    for _ in range(count):
        if "finding" in known and rng.random() < 0.7:
            label = "finding"
        else:
            label = rng.choice([name for name in known if name != "finding"])
        kind = rng.random()
        if kind < 0.06:
            qa_pairs.append(describe(sample, rng))
        elif kind < 0.5:
            qa_pairs.append(open_question(sample, label, rng))
        else:
            qa_pairs.append(closed_question(sample, label, rng.random() < 0.5, rng))
    return qa_pairs


def _corpus() -> Iterator[str]:
    values = sorted({value for values in LABELS.values() for value in values} | set(DIMS) | {"yes", "no"})
    for wordings in (*OPEN.values(), DESCRIBE, CLOSED["normal"], CLOSED["abnormal"]):
        for wording in wordings:
            for end in ("", *SHORT, YES_OR_NO):
                yield wording + end
    for label, wordings in CLOSED.items():
        for wording in wordings:
            for value in LABELS.get(label, DIMS if label == "dims" else [v for f in FINDINGS for v in LABELS[f]]):
                yield _fill(wording, value) + YES_OR_NO
    for value in values:
        yield from [f" {value}", f" A 2D {value} scan of the {value}: {value}.", value] * 20


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 700 tokens and the three image tokens; unk/pad, bos and eos have LLaMA's ids 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<image>", "</image>", "<image_token>"],
        clean_up_tokenization_spaces=False,
    )
