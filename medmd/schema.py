"""What a record of MedMD is: the one definition, as a dataclass and as `datasets.Features`.

A record is one exchange about one or several scans, in the form that the chat templates of transformers, TRL and
ms-swift take. Importing this module is light: no torch, and `datasets` only when `features` is called.

>>> question = Message("user", (Part("image"), Part("text", "Which imaging modality is this?")))
>>> answer = Message("assistant", (Part("text", "CT"),))
>>> [part.type for part in question.content]
['image', 'text']
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

CONFIGS = ("2d", "3d")
SPLITS = ("train", "validation", "test")
TASKS = (
    "vqa",  # a question of the source's
    "modality",
    "body_part",
    "plane",
    "sequence",  # MR sequence
    "diagnosis",  # findings, open and yes/no
    "report",
    "caption",
    "rationale",  # why a diagnosis is made: its radiographic features
    "interleaved",  # running text of a paper with its figures
)
ANSWER_TYPES = ("open", "closed", "choice")  # closed: yes or no
ACCESS = ("open", "nc", "form", "credentialed")  # nc: no commercial use; form: terms to sign; credentialed: PhysioNet
YES_NO = ("yes", "no")
PRESENT, ABSENT, UNCERTAIN = 1, 0, -1

_ID = re.compile(r"[a-z0-9][a-z0-9-]*(/[A-Za-z0-9_.,=+-]+)+")
_HEX = re.compile(r"[0-9a-f]+")


class DataError(ValueError):
    """Data that cannot become records: one line that names the file or the record and the remedy."""


@dataclass(frozen=True)
class Part:
    """A piece of a message: an image mark (`text` is None) or text. Marks stand in the order of `Record.images`."""

    type: str
    text: str | None = None


@dataclass(frozen=True)
class Message:
    """What one side says: `role` is user or assistant."""

    role: str
    content: tuple[Part, ...]


@dataclass(frozen=True)
class Finding:
    """A finding that the source mentions: `value` 1 present, 0 absent, -1 uncertain. What is not mentioned is not listed."""

    name: str
    value: int


@dataclass(frozen=True)
class Stored:
    """A scan as it is stored: file content, and a name whose ending tells the format (nothing else is in the name)."""

    bytes: bytes
    path: str


@dataclass(frozen=True)
class Record:
    """One row of a MedMD dataset.

    Args:
        id: `source/key/task/number`, unique; patient ids are in it only as salted hashes.
        images: the scans: PNG or JPEG in the config `2d`, gzipped NIfTI (RAS+ affine, mm) in `3d`. A case of images and
            volumes is `3d`, its images volumes of one slice.
        messages: user and assistant in turn; image marks stand in user messages, as many as `images`.
        task: one of `TASKS`.
        answer_type: one of `ANSWER_TYPES`.
        choices: the options where `answer_type` is choice; the answer is one of them.
        findings: what the source states about the scans; a question is answered "no" only from value 0.
        modality: CT, MRI, X-ray, ultrasound, mammography, …; None where unknown, as with the two that follow.
        body_part: what is shown.
        plane: axial, coronal, sagittal, frontal, lateral, …
        source: name of the source, as `radfm data list` has it.
        source_version: which release of it.
        licence: of the scans and texts.
        access: one of `ACCESS`: who may see the record.
        split: one of `SPLITS`.
        split_origin: published (the source's split) or ours (by hash of the group).
        group: salted hash of the patient, or of what stands for one. No group is in two splits.
        study: salted hash of the study, None where unknown.
        image_sha256: one a scan: of the stored file where it was passed through, else of its pixels; of the unzipped NIfTI.
        image_hash: one a scan: 256-bit difference hash in hexadecimal (`medmd.hashing`).
        shapes: one a scan: (height, width), or (height, width, depth) in `3d`.
        extra: the source's fields that have no place above: boxes, report sections.
    """

    id: str
    images: tuple[Stored, ...]
    messages: tuple[Message, ...]
    task: str
    answer_type: str
    source: str
    licence: str
    access: str
    split: str
    split_origin: str
    group: str
    image_sha256: tuple[str, ...]
    image_hash: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    choices: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    modality: str | None = None
    body_part: str | None = None
    plane: str | None = None
    source_version: str = ""
    study: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """`3d` where the scans are volumes, else `2d`."""
        return "3d" if len(self.shapes[0]) == 3 else "2d"

    @property
    def answer(self) -> str:
        """The text of the last message."""
        return "".join(part.text or "" for part in self.messages[-1].content)

    def to_row(self) -> dict[str, Any]:
        """The record as plain lists and dicts, in the order of the columns; `extra` stays a dict."""
        row = asdict(self)
        return {name: _plain(row[name]) for name in COLUMNS}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Record":
        """The record of a row that pyarrow or `datasets` (with `decode=False` scans) returns."""
        values = {name: row[name] for name in COLUMNS}
        values["images"] = tuple(Stored(scan["bytes"], scan["path"]) for scan in row["images"])
        values["messages"] = messages_from(row["messages"])
        values["findings"] = findings_from(row["findings"])
        values["shapes"] = tuple(tuple(shape) for shape in row["shapes"])
        for name in ("choices", "image_sha256", "image_hash"):
            values[name] = tuple(row[name])
        if isinstance(row["extra"], str):
            import json

            values["extra"] = json.loads(row["extra"])
        return cls(**values)


COLUMNS = (
    *("id", "images", "messages", "task", "answer_type", "choices", "findings", "modality", "body_part", "plane"),
    *("source", "source_version", "licence", "access", "split", "split_origin", "group", "study"),
    *("image_sha256", "image_hash", "shapes", "extra"),
)
assert sorted(COLUMNS) == sorted(f.name for f in fields(Record))


def messages_from(rows: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The messages of a row or of a line of JSON."""
    return tuple(Message(row["role"], tuple(Part(part["type"], part["text"]) for part in row["content"])) for row in rows)


def findings_from(rows: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """The findings of a row or of a line of JSON."""
    return tuple(Finding(row["name"], row["value"]) for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def features(config: str) -> "datasets.Features":
    """The columns as `datasets` knows them: `Image` scans in the config `2d`, `Nifti(decode=False)` in `3d`.

    Raises:
        DataError: there is no such config.
    """
    if config not in CONFIGS:
        raise DataError(f"config {config!r} is none of {', '.join(CONFIGS)}.")
    from datasets import Features, Image, Json, List, Nifti, Value

    string, strings = Value("string"), List(Value("string"))
    types: dict[str, Any] = dict.fromkeys(COLUMNS, string)
    types["images"] = List(Image()) if config == "2d" else List(Nifti(decode=False))
    types["messages"] = List({"role": string, "content": List({"type": string, "text": string})})
    types["findings"] = List({"name": string, "value": Value("int8")})
    types["choices"] = types["image_sha256"] = types["image_hash"] = strings
    types["shapes"] = List(List(Value("int32")))
    types["extra"] = Json()
    return Features(types)


def validate(record: Record) -> None:
    """Check every law of `Record`.

    Raises:
        DataError: the first law that is broken, with the record's id.
    """
    for problem in _problems(record):
        raise DataError(f"record {record.id!r}: {problem}.")


def _problems(record: Record) -> Any:
    if not _ID.fullmatch(record.id):
        yield "the id is not source/key/task/number in plain letters"
    for name, allowed in (("task", TASKS), ("answer_type", ANSWER_TYPES), ("access", ACCESS), ("split", SPLITS)):
        if getattr(record, name) not in allowed:
            yield f"{name} {getattr(record, name)!r} is none of {', '.join(allowed)}"
    if record.split_origin not in ("published", "ours"):
        yield f"split_origin {record.split_origin!r} is neither published nor ours"
    if not _HEX.fullmatch(record.group) or (record.study is not None and not _HEX.fullmatch(record.study)):
        yield "group and study are hexadecimal hashes"
    yield from _message_problems(record)
    if not record.images:
        yield "it has no scan"
    if not len(record.images) == len(record.image_sha256) == len(record.image_hash) == len(record.shapes):
        yield "images, image_sha256, image_hash and shapes differ in length"
    if len({len(shape) for shape in record.shapes} | {2, 3}) != 2 or len({len(shape) for shape in record.shapes}) > 1:
        yield f"shapes {record.shapes} are neither all (height, width) nor all (height, width, depth)"
    if any(not scan.bytes for scan in record.images):
        yield "a scan is empty"
    if record.answer_type == "choice" and record.answer not in record.choices:
        yield f"the answer {record.answer!r} is none of the choices"
    if record.answer_type == "closed" and record.answer.lower().rstrip(".") not in YES_NO:
        yield f"the answer {record.answer!r} of a closed question is neither yes nor no"
    names = [finding.name for finding in record.findings]
    if len(set(names)) < len(names):
        yield "a finding is listed twice"
    if any(finding.value not in (PRESENT, ABSENT, UNCERTAIN) for finding in record.findings):
        yield "a finding's value is none of 1, 0, -1"


def _message_problems(record: Record) -> Any:
    roles = [message.role for message in record.messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        yield f"the roles {roles} are not user and assistant in turn"
    marks = 0
    for message in record.messages:
        for part in message.content:
            if part.type == "image":
                marks += 1
                if message.role != "user" or part.text is not None:
                    yield "an image mark has text, or stands outside a user message"
            elif part.type != "text" or not part.text:
                yield "a part is neither an image mark nor text that is not empty"
    if marks != len(record.images):
        yield f"{marks} image marks for {len(record.images)} scans"
    if roles and not record.answer.strip():
        yield "the answer is empty"
