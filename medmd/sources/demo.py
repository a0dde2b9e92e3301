"""The packs of the demo checkpoint as one source, with the questions that the checkpoint is meant to answer.

Beside what `questions.ask` makes of the labels, each scan gets more wordings, 2D or 3D, and texts that are composed from
the labels (`extra["note"]` says so): a description, a report and a rationale. A rationale names the signs by which
textbooks tell a finding; nobody saw them in this scan. Where the labels of a pack name no finding, a question for one
is answered with `UNKNOWN`: what was never labelled cannot be learned, and a small model would name a finding anyway.
Such a record teaches to refuse and has no right answer, so `extra["unlabelled"]` keeps it out of benchmarks.
Volumes are also there slice by slice. Names of their patients' diseases are not asked for: a slice need not show them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from radfm.affine_radfm import PLANES

from ..folder import MEMBER, Folder
from ..groups import digest
from ..prompts import CLOSED, NORMAL, OPEN, article, choose
from ..questions import VALUES, make_draft, names_that_clash
from ..schema import PRESENT, DataError
from ..source import Draft, Rows, Source, Study
from .demo_packs import BUSI, COMMON, TUMORS
from .demo_packs import SOURCES as PACKS

LARGE = ("mednist", "pneumonia-mnist")  # thousands of scans of one look: each gets a part of the questions
UNKNOWN = "uncertain: findings on such scans were not learned"
COMPOSED = "the reference is composed from labels"
TYPICAL = "the reference is composed from a label; its signs are typical of the finding, and nobody saw them in the scan"
# Of each pack with findings, all that its labels tell apart.
FINDINGS = {"brain-tumor": TUMORS, "busi": tuple(BUSI.values()), "pneumonia-mnist": (NORMAL, "pneumonia")}
# Pack and finding → what an image of it shows as a rule.
SIGNS = {
    ("brain-tumor", "glioma"): "a mass inside the brain with uneven contrast enhancement",
    ("brain-tumor", "meningioma"): "a mass at the meninges with even contrast enhancement",
    ("brain-tumor", "pituitary tumor"): "a mass in the sella",
    ("busi", "benign breast lesion"): "an oval mass with a smooth margin",
    ("busi", "malignant breast tumor"): "an irregular mass with an unsharp margin",
    ("busi", NORMAL): "no mass",
    ("pneumonia-mnist", "pneumonia"): "an opacity of the lung",
    ("pneumonia-mnist", NORMAL): "clear lungs",
}
QUESTIONS = {
    "plane": ("In which plane is this scan?", "Which plane is shown?"),
    "diagnosis": ("What is the finding?", "What does this scan show?", "Which disease is seen here?"),
    "dims": ("Is this scan 2D or 3D?", "Is this a 2D image or a 3D volume?"),
    "caption": ("Describe this scan.", "What is this?"),
    "report": ("Write a report of this scan.", "Write the radiology report.", "Report this scan."),
    "rationale": (
        "What is the diagnosis, and what in the scan shows it?",
        "Explain the diagnosis from the scan.",
        "Which radiographic features lead to the diagnosis?",
    ),
}
YES_OR_NO = " Answer yes or no."
SLICES = {"axial": 12, "coronal": 4, "sagittal": 4}  # of each volume, from the middle 60 %


@dataclass(frozen=True)
class PackScan:
    """A study of a pack."""

    pack: str
    study: Study
    is_volume: bool

    @property
    def finding(self) -> str | None:
        """The finding, or that there is none; None where the pack's labels do not say."""
        if self.pack not in FINDINGS:
            return None
        return next((name for name, value in self.study.findings.items() if value == PRESENT), NORMAL)

    def chosen(self, share: int, *key: str) -> bool:
        """True for one scan in `share` of the large packs, and for each scan of the others."""
        return self.pack not in LARGE or digest("demo", *key, self.study.key)[0] % share == 0

    def draft(self, task: str, question: str, answer: str, number: int, note: str = "") -> Draft:
        """A record about this scan; numbers from 10 on are free beside those of `questions.ask`."""
        return make_draft(self.study, task, answer, question, number=10 + number, note=note)

    def refusal(self, task: str, question: str, answer: str, number: int) -> Draft:
        """A record whose question the labels cannot answer."""
        draft = self.draft(task, question, answer, number)
        return replace(draft, extra={**draft.extra, "unlabelled": True})

    def question(self, kind: str, number: int = 0) -> str:
        """One of the wordings of a kind; another one for each number."""
        wordings = QUESTIONS[kind]
        first = wordings.index(choose(wordings, 0, kind, self.study.key))
        return wordings[(first + number) % len(wordings)]

    def describe(self) -> str:
        """The labels of the acquisition in a few words."""
        study = self.study
        words = ("3D" if self.is_volume else "2D", study.plane, study.sequence, study.modality)
        region = f" of the {study.body_part}" if study.body_part else ""
        return " ".join(word for word in words if word) + region


def read_demo(folder: Folder) -> Rows:
    """Every pack of the folder, in the layout that its source has.

    Raises:
        DataError: a pack is missing; the message has its source and licence.
    """
    for source in PACKS:
        for study in _studies(source, folder):
            volume = source.dimensions == "3D"
            yield from _ask(PackScan(source.name, study, volume))
            if volume:
                for image in _cut(study):
                    yield from _ask(PackScan(source.name, image, is_volume=False))


def _studies(source: Source, folder: Folder) -> Iterator[Study]:
    try:
        rows = list(source.read(folder))
    except DataError as error:
        raise DataError(f"{str(error).rstrip('.')} ({source.title}: {source.url}, {source.licence}).") from error
    if not rows:
        raise DataError(f"{folder.root}: lacks {source.layout} ({source.title}: {source.url}, {source.licence}).")
    for row in rows:
        assert isinstance(row, Study)
        ask = row.ask if source.name in FINDINGS else tuple(kind for kind in row.ask if kind != "diagnosis")
        yield replace(
            row,
            key=f"{source.name}/{row.key}",
            ask=ask,
            extra={"licence": source.licence, **row.extra, "pack": source.name},
            findings=row.findings if source.name in FINDINGS else {},
            patient=row.patient and f"{source.name} {row.patient}",  # packs number their patients alike
        )


def _cut(study: Study) -> Iterator[Study]:
    """Slices of a volume as studies of their own."""
    for plane in PLANES:
        for k in range(SLICES[plane]):
            position = 0.2 + 0.6 * k / (SLICES[plane] - 1)
            yield replace(
                study,
                key=f"{study.key}/{plane}-{k}",
                images=(f"{study.images[0]}{MEMBER}{plane}{MEMBER}{position:.3f}",),
                plane=plane,
            )


def _ask(scan: PackScan) -> Rows:
    yield scan.study
    dims = "3D" if scan.is_volume else "2D"
    if scan.chosen(4, "dims"):
        yield scan.draft("vqa", scan.question("dims"), dims, 0)
    if scan.study.plane and scan.chosen(4, "plane"):
        yield scan.draft("plane", scan.question("plane"), scan.study.plane, 0)
    if scan.study.modality and scan.chosen(4, "modality"):
        yield _yes_or_no(scan, "modality", scan.study.modality, VALUES["modality"], choose(("yes", "no"), 0, scan.study.key))
    if scan.chosen(6, "caption"):
        text = scan.describe() + (f": {scan.finding}" if scan.finding else "") + "."
        yield scan.draft("caption", scan.question("caption"), text, 0, COMPOSED)
    yield from _ask_finding(scan) if scan.finding else _ask_unknown(scan)


def _ask_finding(scan: PackScan) -> Iterator[Draft]:
    assert scan.finding is not None
    if not scan.chosen(3, "finding"):
        return
    for number in range(2):
        yield scan.draft("diagnosis", scan.question("diagnosis", number), scan.finding, number)
    for answer in ("yes", "no"):
        yield _yes_or_no(scan, "diagnosis", scan.finding, FINDINGS[scan.pack], answer)
    sign = SIGNS[scan.pack, scan.finding]
    report = f"{scan.describe()}. Findings: {sign}. Impression: {scan.finding}."
    yield scan.draft("report", scan.question("report"), report, 0, TYPICAL)
    yield scan.draft("rationale", scan.question("rationale"), f"{scan.finding}: {sign}.", 0, TYPICAL)


def _ask_unknown(scan: PackScan) -> Iterator[Draft]:
    """Questions for findings that the pack does not know, open and yes/no, a report and a rationale."""
    if scan.chosen(3, "unknown"):
        wordings = (*QUESTIONS["diagnosis"], *OPEN["diagnosis"])
        yield scan.refusal("diagnosis", choose(wordings, 0, "unknown", scan.study.key), UNKNOWN, 0)
    if scan.chosen(6, "unknown, yes or no"):
        names = tuple(name for names in FINDINGS.values() for name in names)
        question = _closed("diagnosis", choose(names, 0, "unknown name", scan.study.key), scan.study.key)
        yield scan.refusal("diagnosis", question, UNKNOWN, 1)
    if scan.chosen(6, "report"):
        report = f"{scan.describe()}. Findings: not assessed. Impression: {UNKNOWN}."
        yield scan.refusal("report", scan.question("report"), report, 0)
    if scan.chosen(12, "rationale"):
        yield scan.refusal("rationale", scan.question("rationale"), UNKNOWN, 0)


def _yes_or_no(scan: PackScan, kind: str, value: str, values: tuple[str, ...], answer: str) -> Draft:
    """A yes/no question about the true value, or about another one."""
    if answer == "no":
        clashing = names_that_clash(value)
        value = choose([other for other in values if other not in clashing], 0, kind, scan.study.key)
    question = _closed(kind, value, f"{scan.study.key} {answer}")
    draft = scan.draft(kind, question + YES_OR_NO, answer, 4 if answer == "yes" else 5)
    return replace(draft, answer_type="closed", topic=f"{kind}: {value}")


def _closed(kind: str, value: str, key: str) -> str:
    wording = choose(CLOSED["normal" if value == NORMAL else kind], 0, "demo", key)
    return wording.format(a=article(value), value=value)


SOURCES = (
    Source(
        name="demo",
        title="The packs of the demo checkpoint, with slices of the volumes and composed texts",
        size="about 16,000 scans",
        url="the sources named in `radfm data list`",
        licence="as each row says",
        tasks=("diagnosis", "vqa", "modality", "body_part", "plane", "sequence", "caption", "report", "rationale"),
        read=read_demo,
        dimensions="both",
        **{**COMMON, "layout": "the files of " + ", ".join(source.name for source in PACKS)},
    ),
)
