"""Held-out records → items. A record's question is an item; label tasks give three more forms, drawn by hash.

The other forms of an open question whose answer is a label (a modality, a body part, a finding):

- yes_no: a question about the right value or about a wrong one, which one and which value by hash of seed and record id;
- choice: the same question with up to four lettered options;
- likelihood: the same question, and options that only the scorer sees.

A wrong value is one that the source knows to be wrong: another modality, body part, plane or sequence that does not clash
with the right one, or a finding with value 0.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase as LETTERS

from radfm.medmd.groups import digest
from radfm.medmd.prompts import NORMAL, OPEN, choose, closed_question
from radfm.medmd.questions import VALUES, names_that_clash
from radfm.medmd.schema import ABSENT, CONFIGS, PRESENT, YES_NO, Message, Part, Record

from .items import FORMS, BenchError, Item

BENCH_TASK = {
    "modality": "modality",
    "diagnosis": "diagnosis",
    "vqa": "vqa",
    "body_part": "vqa",
    "plane": "vqa",
    "sequence": "vqa",
    "report": "report",
    "caption": "report",
    "rationale": "rationale",
}
LABEL_TASKS = ("modality", "body_part", "plane", "sequence", "diagnosis")
OWN_FORM = {"open": "open", "closed": "yes_no", "choice": "choice"}
MAX_CHOICES, MAX_SCORED = 4, 8
# Sources whose training part RadFM was trained on (paper, Table "Datasets"): a score there compares models and says nothing
# about new data.
SEEN_BY_RADFM = {
    *("radfm-csv", "rad3d", "medpix", "pmc-oa", "pmc-inline", "pmc-casereport", "pmc-vqa", "vqa-rad", "slake"),
    *("mimic-cxr", "mimic-cxr-jpg", "vindr-cxr", "vindr-pcxr", "vindr-spinexr", "vindr-mammo", "nih", "chexpert"),
    *("covidx", "nlm-tb", "object-cxr", "openi", "rsna", "siim-acr"),
}
# All wordings of our open questions, the longest first, so that what stands before one is the patient's history.
_WORDINGS = sorted({wording for wordings in OPEN.values() for wording in wordings}, key=len, reverse=True)


@dataclass
class Drawn:
    """Items, and how many records became none, by reason."""

    items: list[Item] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def draw(records: Iterable[Record], seed: int = 0, forms: Sequence[str] = FORMS, per_task: int | None = None) -> Drawn:
    """The items of the records, sorted by id. The same records and arguments give the same items.

    Args:
        records: with or without their scans.
        seed: decides wordings, values and the order of options, and which records `per_task` keeps.
        forms: which forms to keep; a record whose question has another form gives no item of its own.
        per_task: the most records of each of the five tasks, chosen by hash of their ids; None takes all. Half of them are
            volumes, where there are as many. Their items are those that they have among all records.

    Raises:
        BenchError: a form that is none of `FORMS`.
    """
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise BenchError(f"form {unknown[0]!r} is none of {', '.join(FORMS)}.")
    records = list(records)
    pools = _answers_by_task(records)
    drawn = Drawn()
    by_task: dict[str, list[Record]] = {}
    for record in records:
        if record.task not in BENCH_TASK:
            drawn.left_out[f"task {record.task}: running text asks no question"] += 1
        elif record.extra.get("unlabelled"):
            drawn.left_out["no label: nothing is known to be the right answer"] += 1
        else:
            by_task.setdefault(BENCH_TASK[record.task], []).append(record)
    for task, found in by_task.items():
        ids = _choose_records(found, seed, per_task)
        if len(ids) < len(found):
            drawn.left_out[f"{task}: {len(ids):,} of {len(found):,} were drawn"] += len(found) - len(ids)
        for record in found:
            if record.id in ids:
                item = own_item(record)
                candidates = [item, *_other_forms(record, item, pools, seed)]
                drawn.items += [candidate for candidate in candidates if candidate.form in forms]
    drawn.items.sort(key=lambda item: item.id)
    return drawn


def _choose_records(records: Sequence[Record], seed: int, per_task: int | None) -> set[str]:
    """The ids of `per_task` records: half of them volumes where there are as many, since most data have few of them."""
    if per_task is None:
        return {record.id for record in records}
    images, volumes = (
        order_by_hash((record.id for record in records if record.config == config), seed, "per task") for config in CONFIGS
    )
    chosen = volumes[: max(per_task // 2, per_task - len(images))]
    return {*chosen, *images[: per_task - len(chosen)]}


def own_item(record: Record) -> Item:
    """The item that asks the question of the record itself."""
    form = OWN_FORM[record.answer_type]
    answer = record.answer.strip()
    note = record.extra.get("note")
    return Item(
        id=f"{record.id}#{form}",
        record=record.id,
        form=form,
        task=record.task,
        bench_task=BENCH_TASK[record.task],
        messages=record.messages[:-1],
        options={"open": (), "yes_no": YES_NO, "choice": record.choices}[form],
        reference=answer.lower().rstrip(".") if form == "yes_no" else answer,
        group=record.group,
        source=record.source,
        modality=record.modality,
        body_part=record.body_part,
        config=record.config,
        findings=record.findings,
        comparison_only=record.source in SEEN_BY_RADFM,
        asked=_asked_value(record) if form == "yes_no" else "",
        note=note if isinstance(note, str) else "",
        image_sha256=record.image_sha256,
    )


def letter_options(options: Sequence[str]) -> str:
    """Options as a question shows them.

    >>> letter_options(("CT", "MRI"))
    'A: CT B: MRI'
    """
    return " ".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))


def split_history(text: str) -> tuple[str, str]:
    """History and question of a text that ends in one of our open questions; no history where it does not.

    >>> split_history("Male, 53 years. Cough. What is the diagnosis?")
    ('Male, 53 years. Cough.', 'What is the diagnosis?')
    """
    for wording in _WORDINGS:
        if text.endswith(f" {wording}"):
            return text[: -len(wording)].strip(), wording
    return "", text


def replace_question(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with another text behind the image marks of its last message."""
    marks = tuple(part for part in messages[-1].content if part.type == "image")
    return (*messages[:-1], Message("user", (*marks, Part("text", text))))


def order_by_hash(values: Iterable[str], seed: int, *key: str) -> list[str]:
    """The values in an order that the hash of seed, key and value decides."""
    return sorted(values, key=lambda value: (digest(str(seed), *key, value), value))


def wrong_values(record: Record, pools: Mapping[tuple[str, str], set[str]]) -> list[str]:
    """Values that are certainly no answer to the record's open question, sorted.

    Args:
        pools: (source, task) → answers of open questions.
    """
    answer = record.answer.strip()
    if record.task == "diagnosis":
        present = {finding.name for finding in record.findings if finding.value == PRESENT}
        absent = {finding.name for finding in record.findings if finding.value == ABSENT}
        return sorted(absent | ({NORMAL} if present and answer != NORMAL else set()))
    known = VALUES[record.task]
    pool = set(known) if answer in known else pools.get((record.source, record.task), set())
    return sorted(pool - names_that_clash(answer))


def _answers_by_task(records: Sequence[Record]) -> dict[tuple[str, str], set[str]]:
    pools: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.task in LABEL_TASKS and record.answer_type == "open":
            pools.setdefault((record.source, record.task), set()).add(record.answer.strip())
    return pools


def _other_forms(record: Record, item: Item, pools: Mapping[tuple[str, str], set[str]], seed: int) -> list[Item]:
    """The drawn forms of an open question whose answer is a label; none where no value is known to be wrong."""
    if record.task not in LABEL_TASKS or item.form != "open":
        return []
    wrong = wrong_values(record, pools)
    right = _right_values(record)
    if not wrong or not right:
        return []
    items = [_yes_no(item, right, wrong, seed)]
    if len(right) == 1:
        shown = order_by_hash(wrong, seed, "choice", record.id)[: MAX_CHOICES - 1]
        options = tuple(order_by_hash([*shown, right[0]], seed, "order", record.id))
        messages = replace_question(item.messages, f"{item.question} {letter_options(options)}")
        items.append(_form(item, "choice", messages, options, right[0]))
        scored = order_by_hash(wrong, seed, "likelihood", record.id)[: MAX_SCORED - 1]
        items.append(_form(item, "likelihood", item.messages, tuple(sorted([*scored, right[0]])), right[0]))
    return items


def _right_values(record: Record) -> list[str]:
    """The answer, or the findings that it lists."""
    answer = record.answer.strip()
    present = sorted(finding.name for finding in record.findings if finding.value == PRESENT)
    return present if record.task == "diagnosis" and answer == ", ".join(present) else [answer]


def _yes_no(item: Item, right: Sequence[str], wrong: Sequence[str], seed: int) -> Item:
    answer = choose(YES_NO, seed, "answer", item.record)
    value = choose(right if answer == "yes" else wrong, seed, "value", item.record)
    question = closed_question(item.task, value, seed, f"{item.record}/{answer}")
    marks = tuple(part for message in item.messages for part in message.content if part.type == "image")
    messages = (Message("user", (*marks, Part("text", question))),)
    return replace(_form(item, "yes_no", messages, YES_NO, answer), asked=value)


def _form(item: Item, form: str, messages: tuple[Message, ...], options: tuple[str, ...], reference: str) -> Item:
    return replace(
        item, id=f"{item.record}#{form}", form=form, messages=messages, options=options, reference=reference, asked=""
    )


def _asked_value(record: Record) -> str:
    """The finding or value that a yes/no question of a record names, where exactly one is known; the longest name first."""
    text = "".join(part.text or "" for part in record.messages[-2].content).lower()
    names = [finding.name for finding in record.findings] if record.task == "diagnosis" else VALUES.get(record.task, ())
    for name in sorted(names, key=len, reverse=True):
        if re.search(rf"\b{re.escape(name.lower())}\b", text):
            return name
    return ""
