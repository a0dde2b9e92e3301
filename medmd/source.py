"""What an adapter declares and yields: `Source`, and its rows as `Draft` (question and answer known) or `Study` (labels)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .folder import Folder


@dataclass(frozen=True)
class Draft:
    """A record before its scans are read.

    Args:
        key: the source's key of the row, unique together with `task` and `number`.
        images: references to scans (`medmd.scans.open_reference`), relative to the source's folder.
        task: one of `schema.TASKS`.
        answer: what the assistant says.
        question: what the user says after the scans; or text and image marks (None) in order; empty: a wording is chosen.
        context: what stands before the question, such as the patient's history.
        wording: the kind of `prompts.OPEN` to choose from, where it is not the task.
        number: tells rows of one key and task apart.
        answer_type, choices, modality, body_part, plane: as in `schema.Record`.
        findings: name → 1, 0 or -1.
        patient: the source's id of the patient; hashed before it is stored.
        study: the source's id of the study; hashed before it is stored.
        split: the published split, None where there is none.
        topic: what one of our yes/no questions asks for; of each, as many are answered yes as no.
        identities: names of the scans that other sources share (`medpix:synpic100`), so that a scan of one's test split
            leaves the others' training splits.
        extra: fields for `Record.extra`. Nothing of a patient.
    """

    key: str
    images: tuple[str, ...]
    task: str
    answer: str
    question: str | tuple[str | None, ...] = ""
    context: str = ""
    wording: str = ""
    number: int = 0
    answer_type: str = "open"
    choices: tuple[str, ...] = ()
    findings: Mapping[str, int] = field(default_factory=dict)
    modality: str | None = None
    body_part: str | None = None
    plane: str | None = None
    patient: str | None = None
    study: str | None = None
    split: str | None = None
    topic: str = ""
    identities: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Labelled scans, from which `questions.ask` makes drafts: what, where, which findings, and yes/no in balance.

    Args:
        findings: name → 1 present, 0 absent, -1 uncertain. A finding that is not mentioned is not in it.
        normal: True where the source calls the study normal, False where it knows of something abnormal, None where neither.
        ask: which questions: of modality, body_part, plane, sequence, diagnosis.
        sequence: MR sequence, None where unknown.

    The other arguments are those of `Draft`.
    """

    key: str
    images: tuple[str, ...]
    findings: Mapping[str, int] = field(default_factory=dict)
    normal: bool | None = None
    ask: tuple[str, ...] = ("diagnosis",)
    modality: str | None = None
    body_part: str | None = None
    plane: str | None = None
    sequence: str | None = None
    patient: str | None = None
    study: str | None = None
    split: str | None = None
    identities: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


Rows = Iterator[Draft | Study]


@dataclass(frozen=True)
class Source:
    """A data set at a portal, and how to read its download.

    Args:
        name: what `--source NAME=FOLDER` calls it.
        title: what it is, in a line.
        size: number of scans or rows, and bytes where known.
        url: where to get it.
        licence: of the data.
        access: one of `schema.ACCESS`.
        tasks: the tasks of its records.
        layout: what the folder has to hold.
        read: folder → rows, in an order that depends on the content alone.
        version: which release.
        patients: the namespace of its patient ids, where other sources have the same patients.
        public_keys: keys name figures or files that are public, not patients: ids show them. Else ids show their hash.
        dimensions: 2D, 3D or both.
        radiology: all of it is radiology; False where figures of other kinds are among it: `radfm data filter` looks.
        paper: figures and text of papers, which RadMD leaves out.
    """

    name: str
    title: str
    size: str
    url: str
    licence: str
    access: str
    tasks: tuple[str, ...]
    layout: str
    read: "Callable[[Folder], Rows]"
    version: str = ""
    patients: str = ""
    public_keys: bool = False
    dimensions: str = "2D"
    radiology: bool = True
    paper: bool = False
