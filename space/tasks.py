"""What the model was trained for and how often it is right: which questions are refused, and the note beside an answer.

Both come from the model's repository (`Repository.tasks`, `Repository.scores`). A model without a list of tasks is asked
anything, and the page says that nothing is known of what it was trained for.
"""

import re
from collections.abc import Sequence
from typing import Any

from scan_store import StoredScan

# The five tasks of the paper, each with the question that its button asks.
QUESTIONS = {
    "modality": ("Modality", "Which imaging modality is this?"),
    "diagnosis": ("Diagnosis", "What is the diagnosis?"),
    "vqa": ("Body part", "Which body part is shown?"),
    "report": ("Report", "Write a report of this scan."),
    "rationale": ("Rationale", "What is the diagnosis, and what in the scan shows it?"),
}
# The codes in a DICOM header that an answer stands for.
MODALITY_CODES = {"CT": ("CT",), "MRI": ("MR",), "X-ray": ("CR", "DX", "MG"), "ultrasound": ("US",)}
# A series description with one of these was recorded after a contrast medium was given.
CONTRAST = re.compile(r"\b(t1ce|ce|c\+|gd|gad\w*|contrast|km|post)\b|\+c\b", re.IGNORECASE)
NO_CONTRAST = re.compile(r"\b(without|w/?o|non?)[ -]?(iv )?contrast", re.IGNORECASE)
WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Words of politeness and grammar that change nothing.
FILLERS = frozenset(
    [
        "please",
        "tell",
        "me",
        "can",
        "could",
        "would",
        "you",
        "i",
        "we",
        "want",
        "to",
        "know",
        "my",
        "image",
        "picture",
        "slice",
        "shows",
        "are",
        "these",
    ]
)
# Topics whose answers are sentences and no labels.
TEXTS = ("describe", "report", "rationale")
PLACES = re.compile(r"\[\d+\]")


class Tasks:
    """The tasks and scores of one model."""

    def __init__(self, tasks: dict[str, Any], scores: Sequence[dict[str, Any]]):
        self.about: str = tasks.get("about", "")
        self.name: str = tasks.get("name", "")
        self.scans_per_question: int | None = tasks.get("scans_per_question")
        self.topics: dict[str, dict[str, Any]] = tasks.get("topics", {})
        self.findings: list[dict[str, Any]] = tasks.get("findings", [])
        self.scores = list(scores)
        self._modalities: list[str] = tasks.get("modalities", [])
        self._vocabulary = frozenset(tasks.get("vocabulary", []))
        self._unknown: str = tasks.get("unknown", "")
        self._trained_for: list[str] = tasks.get("tasks", [])

    @property
    def known(self) -> bool:
        """Whether the model's repository says what the model was trained for."""
        return bool(self.topics)

    def questions(self) -> dict[str, str]:
        """The task buttons, label → question: the tasks that the model was trained for."""
        return {QUESTIONS[task][0]: QUESTIONS[task][1] for task in self._trained_for if task in QUESTIONS}

    def topic(self, question: str) -> str | None:
        """What a question is about: the topic whose longest word or phrase is in it; None where there is none."""
        text = " ".join(WORD.findall(PLACES.sub(" ", question.lower())))
        best, longest = None, 0
        for name, topic in self.topics.items():
            for phrase in topic["words"]:
                if len(phrase) > longest and re.search(rf"\b{re.escape(phrase.lower())}\b", text):
                    best, longest = name, len(phrase)
        return best

    def refusal(self, question: str, scans: Sequence[StoredScan]) -> str:
        """Why the model is not asked this about these scans, in a sentence; empty where it may be asked."""
        if not self.known:
            return ""
        if self.scans_per_question is not None and len(scans) > self.scans_per_question:
            return "This model was trained on one scan at a time: name one scan, and compare the answers yourself."
        words = WORD.findall(PLACES.sub(" ", question.lower()))
        strange = [word for word in dict.fromkeys(words) if word not in self._vocabulary | FILLERS]
        if self._vocabulary and strange:
            quoted = ", ".join(f"“{word[:30]}”" for word in strange[:3])
            return f"This model has never seen {quoted} in a question. {self._what_it_knows()}"
        topic = self.topic(question)
        if topic is None:
            return f"That is outside what this model was trained for. {self._what_it_knows()}"
        for scan in scans:
            modality = scan.about["modality"]
            allowed = self.topics[topic].get("modalities") or self._modalities
            if modality and allowed and modality not in allowed:
                name = scan.about["modality_name"]
                return f"{scan.title} is {name}. This model was not trained on such scans for that question."
            if topic == "finding" and (reason := self._no_finding(scan)):
                return reason
        return ""

    def note(self, question: str, answer: str, scans: Sequence[StoredScan]) -> str:
        """How far an answer can be trusted: "One of 4 labels; right in 98 % of 1,350 held-out cases."; empty if unknown."""
        topic = self.topic(question)
        if topic is None:
            return ""
        closed = answer.lower().strip(". ") in ("yes", "no")
        if not closed and (wrong := self._no_label(topic, answer)):
            return wrong
        if topic == "finding":
            return " ".join(self._finding_note(finding, closed) for finding in self._findings_for(answer, scans, closed))
        rows = self._rows("yes/no" if closed else topic)
        labels = ["yes", "no"] if closed else self.topics[topic].get("labels", [])
        notes = [_note(len(labels), rows)] if rows and labels else []
        if topic == "modality" and not closed:
            notes += [_contradiction(answer, scan) for scan in scans]
        return " ".join(filter(None, notes))

    def withheld(self, answer: str, scans: Sequence[StoredScan]) -> str:
        """A sentence in place of an answer that names a finding which the model cannot know for this scan; else empty."""
        labels = {label for finding in self.findings for label in finding["labels"]} - {"normal"}
        reasons = [self._no_finding(scan) for scan in scans]
        if any(label.lower() in answer.lower() for label in labels) and any(reasons):
            return f"The answer named a finding and is not shown. {next(filter(None, reasons))}"
        return ""

    def _what_it_knows(self) -> str:
        names = {"body_part": "the body part", "dims": "2D or 3D", "finding": "findings", "describe": "a short description"}
        topics = [names.get(name, f"the {name}") for name in self.topics]
        return f"Ask about {', '.join(topics[:-1])} or {topics[-1]}." if len(topics) > 1 else f"Ask about {topics[0]}."

    def _no_finding(self, scan: StoredScan) -> str:
        """Why nothing can be found in this scan; empty where one of the findings was trained on scans like it."""
        knows = f"This model knows findings only as {'; '.join(f['about'] for f in self.findings)}."
        if scan.about["shape"][-1] > 1:
            return f"{knows} This is a volume of {scan.about['shape'][-1]} slices."
        modality = scan.about["modality"]
        fitting = [f for f in self.findings if modality is None or modality in f["modalities"]]
        if not fitting:
            return f"{knows} This is {scan.about['modality_name']}."
        series = scan.about["series"] or ""
        contrast_given = CONTRAST.search(series) and not NO_CONTRAST.search(series)
        if modality is not None and all(f["contrast"] for f in fitting) and not contrast_given:
            return f"{knows} Nothing in this file says that contrast was given."
        return ""

    def _findings_for(self, answer: str, scans: Sequence[StoredScan], closed: bool) -> list[dict[str, Any]]:
        """The findings that an answer can be one of, by the scan's modality and the answer."""
        modalities = {scan.about["modality"] for scan in scans} - {None}
        fitting = [f for f in self.findings if not modalities or modalities & set(f["modalities"])]
        named = [f for f in fitting if any(label.lower() == answer.lower().strip(". ") for label in f["labels"])]
        return named or (fitting if closed else [])

    def _no_label(self, topic: str, answer: str) -> str:
        """A sentence where an answer is none of those that the model was trained to give."""
        labels = self.topics[topic].get("labels") or [label for f in self.findings for label in f["labels"]]
        if topic in TEXTS or (self._unknown and self._unknown in answer):
            return ""
        if not labels or answer.lower().strip(". ") in [label.lower() for label in labels]:
            return ""
        return f"This is none of the {len(set(labels))} answers that the model was trained to give to such a question."

    def _finding_note(self, finding: dict[str, Any], closed: bool) -> str:
        rows = [row for row in self._rows("yes/no, finding" if closed else "finding") if row["pack"] == finding["pack"]]
        count = 2 if closed else len(finding["labels"])
        return f"{_note(count, rows)} That holds for {finding['about']}." if rows else ""

    def _rows(self, label: str) -> list[dict[str, Any]]:
        return [row for row in self.scores if row["label"] == label]


def _note(labels: int, rows: Sequence[dict[str, Any]]) -> str:
    cases, right = (sum(row[key] for row in rows) for key in ("count", "model"))
    return f"One of {labels} labels; right in {right / cases:.0%} of {cases:,} held-out cases."


def _contradiction(answer: str, scan: StoredScan) -> str:
    """A sentence where the header of a scan says another modality than the answer."""
    modality, answer_modalities = scan.about["modality"], MODALITY_CODES.get(answer.strip(". "))
    if modality is None or answer_modalities is None or modality in answer_modalities:
        return ""
    return f"The header of the file says {scan.about['modality_name']}: this answer is wrong."
