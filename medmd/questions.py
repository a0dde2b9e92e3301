"""Questions from labels: open ones, and yes/no ones.

A "no" names something that the source knows to be absent: a finding with value 0, "normal" where the source knows of
something abnormal, a modality, body part or plane other than the true one.
"""

from collections.abc import Iterator
from dataclasses import replace

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


def make_draft(
    study: Study, task: str, answer: str, question: str = "", answer_type: str = "open", number: int = 0, note: str = ""
) -> Draft:
    """A draft about a study, with everything that the study knows of its scans.

    Args:
        note: what a reader of a score must know of the answer (`extra["note"]` of the record).
    """
    extra = dict(study.extra)
    if study.sequence is not None:
        extra["sequence"] = study.sequence
    if note:
        extra["note"] = note
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


def names_that_clash(value: str) -> set[str]:
    """The value, and the names that are no wrong answer where it is the right one.

    >>> sorted(names_that_clash("head"))
    ['brain', 'cervical spine', 'head']
    """
    return {value}.union(*(clash for clash in CLASHES if value in clash))


def ask(study: Study, seed: int) -> Iterator[Draft]:
    """The drafts of a labelled study: diagnosis, and of the other attributes one in an open and one in a yes/no question.

    Yes/no questions are candidates: `Plan.balance_yes_no` keeps as many with answer yes as with no for each value.
    """
    if "diagnosis" in study.ask:
        yield from _ask_diagnosis(study, seed)
    known = [kind for kind in study.ask if kind != "diagnosis" and getattr(study, kind) is not None]
    if known:
        kind = choose(known, seed, "open attribute", study.key)
        yield make_draft(study, kind, getattr(study, kind))
        kind = choose(known, seed, "closed attribute", study.key)
        yield _ask_attribute(study, kind, getattr(study, kind), seed)


def _ask_attribute(study: Study, kind: str, value: str, seed: int) -> Draft:
    clashing = names_that_clash(value)
    wrong = [other for other in VALUES[kind] if other not in clashing]
    if not wrong or choose(("yes", "no"), seed, "answer", study.key) == "yes":
        return _closed(study, kind, value, "yes", seed)
    return _closed(study, kind, choose(wrong, seed, "no", study.key), "no", seed)


def _ask_diagnosis(study: Study, seed: int) -> Iterator[Draft]:
    present = sorted(name for name, value in study.findings.items() if value == PRESENT)
    absent = sorted(name for name, value in study.findings.items() if value == ABSENT)
    if present:
        yield make_draft(study, "diagnosis", ", ".join(present))
    elif study.normal:
        yield make_draft(study, "diagnosis", NORMAL)
    right = present or ([NORMAL] if study.normal else [])
    if right:
        yield _closed(study, "diagnosis", choose(right, seed, "yes", study.key), "yes", seed)
    if study.normal is False and (not absent or choose(("normal", "finding"), seed, "ask", study.key) == "normal"):
        yield _closed(study, "diagnosis", NORMAL, "no", seed)
    elif absent:
        yield _closed(study, "diagnosis", choose(absent, seed, "no", study.key), "no", seed)


def _closed(study: Study, kind: str, value: str, answer: str, seed: int) -> Draft:
    question = closed_question(kind, value, seed, f"{study.key}/{answer}")
    draft = make_draft(study, kind, answer, question, "closed", 1 if answer == "yes" else 2)
    return replace(draft, topic=f"{kind}: {value}")
