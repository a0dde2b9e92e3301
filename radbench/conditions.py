"""The conditions under which each item is asked: the scan itself, baselines without it, and changes of it.

A condition changes what the model gets and nothing else. Which items it applies to:

- "no image": the question alone, without scan and history; all items.
- "history only": history and question without the scan; items with a history or earlier turns.
- "black image": scans of the same shape, all black; all items.
- "scan of another patient, same label", "…, other label": items with such a scan in the same split (`partners`).
- "shuffled options": another order of the options in the question; items of the form choice.
- "flipped scan", "other slices", "other window": the answer must not change; with `--stability`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from radfm.medmd.schema import Message, Part, Record
from radfm.scan_radfm import Scan, to_radiological_view

from .draw import letter_options, order_by_hash, replace_question, split_history
from .items import Item
from .partners import Partners
from .predictions import SCAN

SAME_LABEL, OTHER_LABEL = "scan of another patient, same label", "scan of another patient, other label"
MODEL_CONDITIONS = (SCAN, "no image", "black image", SAME_LABEL, OTHER_LABEL, "shuffled options", "history only")
TEXT_BASELINES = ("most frequent answer", "constant sentence", "nearest training answer")
STABILITY = ("flipped scan", "other slices", "other window")
MIN_SLICES = 8  # half of them still make a patch of the smallest depth
CT_LEVEL = 40.0  # HU, of soft tissue
# Items that a mirrored scan would make wrong.
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ScanKey:
    """One scan as a model gets it: number `index` of a record, changed as the condition `change` says."""

    record: str
    index: int
    change: str = SCAN


@dataclass(frozen=True)
class Request:
    """What a model is asked.

    Args:
        item: id of the item.
        condition: one of `MODEL_CONDITIONS` or `STABILITY`.
        messages: the conversation, image marks in the order of `scans`.
        scans: the scans.
        options: to be scored by likelihood; empty for none.
        shown: the options in the order in which the question shows them.
        generates: whether an answer is generated; else the likeliest option is the answer.
    """

    item: str
    condition: str
    messages: tuple[Message, ...]
    scans: tuple[ScanKey, ...]
    options: tuple[str, ...]
    shown: tuple[str, ...]
    generates: bool


def make_requests(
    items: Sequence[Item], records: Mapping[str, Record], conditions: Sequence[str], seed: int = 0
) -> list[Request]:
    """The requests of all items in all conditions that apply to them, in the order of the items.

    Args:
        records: id → record, with or without scans, of the whole split: other patients' scans are taken from it.
        conditions: of `MODEL_CONDITIONS` and `STABILITY`.
        seed: chooses other patients and the order of shuffled options.
    """
    partners = Partners(records.values(), seed)
    return [request for item in items for name in conditions if (request := _request(item, records, name, partners, seed))]


def apply_change(scan: Scan, change: str) -> Scan:
    """The scan as a condition changes it.

    - black image: the same shape in black, for every window.
    - flipped scan: mirrored from left to right as a radiologist sees it.
    - other slices: every second slice.
    - other window: CT as in a window 1.25 times as wide; others as in one that is narrower by 10 % at each end, or from
      the 2nd to the 98th percentile where the file has no window.
    """
    if change == "black image":
        return replace(scan, voxels=np.zeros_like(scan.voxels), modality=None, windows=((0.0, 255.0),))
    if change == "flipped scan":
        scan = to_radiological_view(scan)
        return replace(scan, voxels=np.ascontiguousarray(scan.voxels[:, :, ::-1]))
    if change == "other slices":
        scan = to_radiological_view(scan)
        affine = None if scan.affine is None else scan.affine @ np.diag([1.0, 1.0, 2.0, 1.0])
        spacing = None if scan.spacing is None else (*scan.spacing[:2], scan.spacing[2] * 2)
        return replace(scan, voxels=np.ascontiguousarray(scan.voxels[..., ::2]), affine=affine, spacing=spacing)
    if change == "other window":
        return _other_window(scan)
    return scan


def _other_window(scan: Scan) -> Scan:
    if scan.modality == "CT":
        return replace(scan, voxels=(scan.voxels - CT_LEVEL) * np.float32(0.8) + CT_LEVEL)
    if scan.windows and scan.modality not in ("MR", "PT"):
        low, high = scan.windows[0]
        margin = (high - low) / 10
        return replace(scan, windows=((low + margin, high - margin),))
    low, high = np.percentile(scan.voxels, (2, 98))
    return replace(scan, voxels=scan.voxels.clip(low, high))


def _request(item: Item, records: Mapping[str, Record], condition: str, partners: Partners, seed: int) -> Request | None:
    """The request of an item in a condition; None where the condition does not apply to it."""
    record = records[item.record]
    messages, change, source, options = item.messages, SCAN, record.id, item.options
    if condition == "no image":
        _, question = split_history(item.question)
        messages = (Message("user", (Part("text", question),)),)
    elif condition == "history only":
        if len(messages) == 1 and not split_history(item.question)[0]:
            return None
        messages = tuple(_without_marks(messages))
    elif condition in (SAME_LABEL, OTHER_LABEL):
        partner = partners.find(item, record, same_label=condition == SAME_LABEL)
        if partner is None:
            return None
        source = partner.id
    elif condition == "shuffled options":
        options = tuple(_shuffle(item, seed))
        text = item.question.replace(letter_options(item.options), letter_options(options))
        if options == item.options or text == item.question:
            return None
        messages = replace_question(messages, text)
    elif condition != SCAN:
        if not _allows_change(item, record, condition):
            return None
        change = condition
    count = sum(part.type == "image" for message in messages for part in message.content)
    return Request(
        item=item.id,
        condition=condition,
        messages=messages,
        scans=tuple(ScanKey(source, index, change) for index in range(count)),
        options=item.options,
        shown=options if item.form == "choice" else (),
        generates=item.form != "likelihood",
    )


def _allows_change(item: Item, record: Record, change: str) -> bool:
    if change == "flipped scan":
        return not _SIDES.search(" ".join((item.question, item.reference, *item.options)))
    if change == "other slices":
        return all(len(shape) == 3 and min(shape) >= MIN_SLICES for shape in record.shapes)
    return True


def _without_marks(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        texts = tuple(part for part in message.content if part.type == "text")
        if texts:
            yield replace(message, content=texts)


def _shuffle(item: Item, seed: int) -> list[str]:
    """The options in another order, by hash; as they are where the form is not choice."""
    if item.form != "choice":
        return list(item.options)
    shuffled = order_by_hash(item.options, seed, "shuffle", item.id)
    return shuffled if tuple(shuffled) != item.options else [*shuffled[1:], shuffled[0]]
