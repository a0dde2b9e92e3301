"""Questions from labels: open ones, and yes/no ones of which as many are answered yes as no.

A "no" names something that the source knows to be absent: a finding with value 0, "normal" where the source knows of
something abnormal, a modality, body part or plane other than the true one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from .prompts import NORMAL, choose, closed_question
from .schema import ABSENT, PRESENT
from .source import Draft, Study

VALUES = {
    "modality": ("CT", "MRI", "X-ray", "ultrasound"),
    "body_part": ("abdomen", "brain", "breast", "cervical spine", "chest", "hand", "pelvis"),
    "plane": ("axial", "coronal", "sagittal", "frontal", "lateral"),
    "sequence": ("T1", "T2", "FLAIR", "DWI"),
}
# Names of one thing, or of things that one scan shows at once: none is the wrong answer where another is right.
CLASHES = (
    {"brain", "head"},
    {"frontal", "coronal", "PA", "AP"},
    {"lateral", "sagittal"},
    {"abdomen", "pelvis", "abdomen and pelvis", "chest, abdomen and pelvis"},
    {"chest", "chest, abdomen and pelvis", "breast"},
    {"head", "cervical spine"},
    {"X-ray", "mammography", "fluoroscopy"},
    {"CT", "PET-CT"},
)


class YesNoBalance:
    """How often each value of one kind was asked with answer yes, and with answer no."""

    def __init__(self) -> None:
        self.total = 0  # yes minus no
        self.surplus: Counter[str] = Counter()  # of each value: yes minus no

    def count(self, value: str, answer: str) -> None:
        step = 1 if answer == "yes" else -1
        self.total += step
        self.surplus[value] += step

    def choose_wrong(self, values: Sequence[str], seed: int, key: str) -> str | None:
        """The value that was asked "yes" most often more than "no"; by hash among equals; None where there are no values."""
        if not values:
            return None
        most = max(self.surplus[value] for value in values)
        return choose([value for value in values if self.surplus[value] == most], seed, "no", key)


Balances = dict[str, YesNoBalance]


def ask(study: Study, balances: Balances, seed: int) -> Iterator[Draft]:
    """The drafts of a labelled study. `balances` belongs to one source and counts on."""
    for kind in study.ask:
        if kind == "diagnosis":
            yield from _ask_diagnosis(study, balances.setdefault(kind, YesNoBalance()), seed)
        elif (value := getattr(study, kind)) is not None:
            yield _draft(study, kind, value)
            yield from _ask_attribute(study, kind, value, balances.setdefault(kind, YesNoBalance()), seed)


def _ask_attribute(study: Study, kind: str, value: str, balance: YesNoBalance, seed: int) -> Iterator[Draft]:
    excluded = {value}.union(*(clash for clash in CLASHES if value in clash))
    wrong = balance.choose_wrong([other for other in VALUES[kind] if other not in excluded], seed, study.key)
    if wrong is None or balance.total <= 0:
        yield _closed(study, kind, value, "yes", balance, seed)
    else:
        yield _closed(study, kind, wrong, "no", balance, seed)


def _ask_diagnosis(study: Study, balance: YesNoBalance, seed: int) -> Iterator[Draft]:
    present = sorted(name for name, value in study.findings.items() if value == PRESENT)
    absent = sorted(name for name, value in study.findings.items() if value == ABSENT)
    if present:
        yield _draft(study, "diagnosis", ", ".join(present))
    elif study.normal:
        yield _draft(study, "diagnosis", NORMAL)
    right = present or ([NORMAL] if study.normal else [])
    wrong = balance.choose_wrong(absent + ([NORMAL] if study.normal is False else []), seed, study.key)
    if right and (wrong is not None or balance.total <= 0):
        yield _closed(study, "diagnosis", choose(right, seed, "yes", study.key), "yes", balance, seed)
    if wrong is not None and (right or balance.total > 0):
        yield _closed(study, "diagnosis", wrong, "no", balance, seed)


def _closed(study: Study, kind: str, value: str, answer: str, balance: YesNoBalance, seed: int) -> Draft:
    balance.count(value, answer)
    question = closed_question(kind, value, seed, f"{study.key}/{answer}")
    return _draft(study, kind, answer, question, "closed", 1 if answer == "yes" else 2)


def _draft(study: Study, task: str, answer: str, question: str = "", answer_type: str = "open", number: int = 0) -> Draft:
    extra = dict(study.extra) if study.sequence is None else {**study.extra, "sequence": study.sequence}
    return Draft(
        key=study.key,
        images=study.images,
        task=task,
        answer=answer,
        question=question,
        number=number,
        answer_type=answer_type,
        findings=study.findings,
        modality=study.modality,
        body_part=study.body_part,
        plane=study.plane,
        patient=study.patient,
        study=study.study,
        split=study.split,
        identities=study.identities,
        extra=extra,
    )
