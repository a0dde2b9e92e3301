"""What an item of RadBench is: one question about the scans of one record, frozen in `items.jsonl`.

>>> question = Message("user", (Part("image"), Part("text", "Is this a CT?")))
>>> record = "csv/1/modality/0"
>>> item = Item(f"{record}#open", record, "open", "modality", "modality", (question,), (), "CT", group="ab12", source="csv")
>>> Item.from_line(item.to_line()) == item
True
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from radfm.medmd.schema import Finding, Message, findings_from, messages_from

BENCHMARK, VERSION = "RadBench", "1.0"
# open: the words of the answer are scored; choice: the options are in the question; likelihood: the model scores options
# that the question does not show.
FORMS = ("open", "yes_no", "choice", "likelihood")
BENCH_TASKS = ("modality", "diagnosis", "vqa", "report", "rationale")  # paper, "RadBench"


class BenchError(ValueError):
    """A benchmark that cannot run or be scored: one line that names the file, model or option and the remedy."""


@dataclass(frozen=True)
class Item:
    """One question. Its scans are those of the record.

    Args:
        id: `<record id>#<form>`, unique.
        record: id of the `medmd` record.
        form: one of `FORMS`.
        task: the record's task, one of `medmd.schema.TASKS`.
        bench_task: one of `BENCH_TASKS`.
        messages: the conversation up to the question: earlier turns, then a user message. Image marks stand in user
            messages, in the order of the record's scans.
        options: yes and no, or the options of a choice; empty where the form is open.
        reference: the right answer; one of the options where there are any.
        group: hash of the patient, or of what stands for one. Resampling is by group.
        source: name of the record's source.
        modality, body_part: as the record has them, None where unknown.
        config: 2d or 3d.
        findings: what the source states about the scans.
        comparison_only: whether RadFM was trained on this source.
        asked: the value that a yes/no question names ("CT"), empty where it is not known or the form is another.
        note: what a reader of a score must know of the item, such as "composed text".
        image_sha256: one a scan, as in the record.
    """

    id: str
    record: str
    form: str
    task: str
    bench_task: str
    messages: tuple[Message, ...]
    options: tuple[str, ...]
    reference: str
    group: str
    source: str
    modality: str | None = None
    body_part: str | None = None
    config: str = "2d"
    findings: tuple[Finding, ...] = ()
    comparison_only: bool = False
    asked: str = ""
    note: str = ""
    image_sha256: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The text of the last message."""
        return "".join(part.text or "" for part in self.messages[-1].content)

    def to_line(self) -> str:
        """The item as one line of JSON, keys in the order of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> "Item":
        """The item of a line of `items.jsonl`.

        Raises:
            BenchError: the line is no item.
        """
        try:
            return cls(**_from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BenchError(f"is no line of items.jsonl: {line[:80]!r} ({error}).") from error


def _from_json(row: dict[str, Any]) -> dict[str, Any]:
    missing = {field.name for field in fields(Item)} - row.keys()
    if missing:
        raise KeyError(f"{', '.join(sorted(missing))} is missing")
    tuples = {name: tuple(row[name]) for name in ("options", "image_sha256")}
    return {**row, **tuples, "messages": messages_from(row["messages"]), "findings": findings_from(row["findings"])}


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 of the version and of the lines in the order of their ids: two runs with one fingerprint asked the same.

    >>> fingerprint([]) == hashlib.sha256(b"RadBench 1.0\\n").hexdigest()
    True
    """
    digest = hashlib.sha256(f"{BENCHMARK} {VERSION}\n".encode())
    for item in sorted(items, key=lambda item: item.id):
        digest.update(f"{item.to_line()}\n".encode())
    return digest.hexdigest()


def write_items(items: Sequence[Item], file: Path) -> None:
    """Write `items.jsonl`, sorted by id."""
    lines = [item.to_line() for item in sorted(items, key=lambda item: item.id)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_items(file: Path) -> list[Item]:
    """The items of a file that `write_items` wrote.

    Raises:
        BenchError: there is no such file, a line is no item, an id is there twice, or a form is unknown.
    """
    if not file.is_file():
        raise BenchError(f"{file}: there is no such file; `radfm bench draw` makes one.")
    items = []
    # Not str.splitlines, which also splits at U+2028 and other characters that JSON leaves as they are.
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                items.append(Item.from_line(line))
            except BenchError as error:
                raise BenchError(f"{file}, line {number}: {error}") from error
    if len({item.id for item in items}) < len(items):
        raise BenchError(f"{file}: an id is there twice; draw the items again with `radfm bench draw`.")
    for item in items:
        if item.form not in FORMS or item.bench_task not in BENCH_TASKS:
            raise BenchError(
                f"{file}: {item.id} has the form {item.form!r} and the task {item.bench_task!r}; draw it again."
            )
    return items
