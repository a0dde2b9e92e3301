"""Scans of other patients with the same label as an item's, or with another one."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from radfm.medmd.groups import digest
from radfm.medmd.prompts import NORMAL
from radfm.medmd.questions import CLASHES
from radfm.medmd.schema import ABSENT, PRESENT, Record

from .draw import order_by_hash
from .items import Item

ATTRIBUTES = ("modality", "body_part", "plane", "sequence")
Kind = tuple[str, ...]
Bucket = tuple[str, str, int]
Labelled = tuple[Hashable, Record]


class Partners:
    """Finds the scans of another patient for an item: from the same source, as many of them, and 2D for 2D.

    What the label is: for a yes/no question about a known value the right answer to it; for a modality, body part, plane or
    sequence that value; for diagnosis, report, caption and rationale the set of findings that are present, where the source
    states findings; else the right answer to the very same question.

    Args:
        records: of the split, with or without scans.
        seed: chooses among several.
    """

    def __init__(self, records: Iterable[Record], seed: int = 0) -> None:
        self._seed = seed
        self._by_kind: dict[tuple[Bucket, Kind], list[Labelled]] = {}
        self._by_value: dict[tuple[Bucket, Kind, Hashable], list[Labelled]] = {}
        by_id = {record.id: record for record in records}
        for record in (by_id[name] for name in order_by_hash(by_id, seed, "partners")):
            for kind, value in _labels(record):
                self._by_kind.setdefault((_bucket(record), kind), []).append((value, record))
                self._by_value.setdefault((_bucket(record), kind, value), []).append((value, record))

    def find(self, item: Item, record: Record, same_label: bool) -> Record | None:
        """The record whose scans stand in for the item's; None where no other patient has such scans.

        Args:
            record: the item's record.
            same_label: whether the right answer must be the same with these scans, or must be another one.
        """
        bucket = _bucket(record)
        if item.form == "yes_no" and item.asked:
            kind = _kind_of_value(item.task, item.asked)
            right_answer = item.reference if same_label else {"yes": "no", "no": "yes"}[item.reference]
            return self._search(
                self._by_kind.get((bucket, kind), ()),
                item,
                record,
                lambda value: _yes_no_answer(value, item.asked, kind) == right_answer,
            )
        labels = dict(_labels(record))
        known = [kind for kind in _kinds(item) if kind in labels]
        if not known:
            return None
        kind = known[0]
        if same_label:
            return self._search(self._by_value[bucket, kind, labels[kind]], item, record, lambda value: True)
        return self._search(self._by_kind[bucket, kind], item, record, lambda value: _differs(value, labels[kind]))

    def _search(
        self, candidates: Sequence[Labelled], item: Item, record: Record, fits: Callable[[Hashable], bool]
    ) -> Record | None:
        """The first candidate of another patient that fits, beginning at a place that the hash of the item decides."""
        if not candidates:
            return None
        start = int.from_bytes(digest(str(self._seed), "partner", item.id)[:8], "big") % len(candidates)
        scans = set(record.image_sha256)
        for value, candidate in (*candidates[start:], *candidates[:start]):
            if candidate.group != record.group and not scans & set(candidate.image_sha256) and fits(value):
                return candidate
        return None


def _bucket(record: Record) -> Bucket:
    return record.source, record.config, len(record.shapes)


def _labels(record: Record) -> Iterator[tuple[Kind, Hashable]]:
    """What is known of the scans of a record, by kind."""
    sequence = record.extra.get("sequence")
    values = {"modality": record.modality, "body_part": record.body_part, "plane": record.plane, "sequence": sequence}
    if record.task in values and record.answer_type == "open":
        values[record.task] = record.answer.strip()
    for attribute, value in values.items():
        if isinstance(value, str):
            yield (attribute,), value
    for finding in record.findings:
        if finding.value in (PRESENT, ABSENT):
            yield ("finding", finding.name), finding.value
    present = tuple(sorted(finding.name for finding in record.findings if finding.value == PRESENT))
    if record.findings:
        yield ("findings",), present
    if present or (record.task == "diagnosis" and record.answer.strip() == NORMAL):
        yield ("finding", NORMAL), ABSENT if present else PRESENT
    yield _question(record), record.answer.strip().lower().rstrip(".")


def _question(record: Record) -> Kind:
    return "question", record.task, "".join(part.text or "" for part in record.messages[-2].content)


def _kinds(item: Item) -> tuple[Kind, ...]:
    """The kinds of label that the right answer to an item depends on, the best first."""
    question = ("question", item.task, item.question)
    if item.task in ATTRIBUTES and item.form != "yes_no":
        return (item.task,), question
    if item.task in ("diagnosis", "report", "caption", "rationale") and item.form != "yes_no":
        return ("findings",), question
    return (question,)


def _kind_of_value(task: str, value: str) -> Kind:
    return ("finding", value) if task == "diagnosis" else (task,)


def _yes_no_answer(known: Hashable, asked: str, kind: Kind) -> str | None:
    """The right answer to whether a scan has a value; None where the names clash and neither answer is certain."""
    if kind[0] == "finding":
        return "yes" if known == PRESENT else "no"
    if known == asked:
        return "yes"
    return None if _clash(known, asked) else "no"


def _differs(value: Hashable, other: Hashable) -> bool:
    return value != other and not _clash(value, other)


def _clash(value: Hashable, other: Hashable) -> bool:
    return any(value in clash and other in clash for clash in CLASHES)
