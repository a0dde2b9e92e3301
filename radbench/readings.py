"""Items with their answers → measurements: which metrics a form of question gets, and how its answers are read."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .items import Item
from .metrics import calibration, closed, external, likelihoods, overlap
from .metrics.findings import finding_scores
from .metrics.medical_terms import Extractor, term_scores
from .metrics.similarity import TextModel
from .predictions import SCAN, Prediction
from .statistics import Measurement

# Questions whose right answer is a label of a small set, whatever the form.
LABEL_TASKS = ("modality", "diagnosis")
STRICT, LENIENT, LIKELIHOOD = "strict", "lenient", "likelihood"
READINGS = {
    STRICT: "strict reading: the whole answer",
    LENIENT: "lenient reading: radbench/metrics/closed.py",
    LIKELIHOOD: "option of the highest mean log-probability per token",
}


@dataclass(frozen=True)
class Pair:
    """A question and what was answered."""

    item: Item
    prediction: Prediction


@dataclass(frozen=True)
class Tools:
    """What some metrics of texts need beyond the texts.

    Args:
        extractor: finds the medical terms of a text; None leaves term precision and recall out.
        text_model: a local language model for BERTScore and cosine; None leaves them out.
        labels: task of the records → the answers that open questions of this task have.
        external: metric of `metrics.external` → the CSV of its scores, for answers under the condition "scan".
    """

    extractor: Extractor | None = None
    text_model: TextModel | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    external: Mapping[str, Path] = field(default_factory=dict)


def labels_of(items: Sequence[Item]) -> dict[str, list[str]]:
    """Task → the references of its open items, sorted: what a reading of an open answer about it chooses from."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for item in items:
        if item.form == "open" and item.bench_task in LABEL_TASKS:
            found[item.task].setdefault(closed.normalise(item.reference), item.reference)
    return {task: [names[key] for key in sorted(names)] for task, names in found.items()}


def has_labels(bench_task: str, form: str) -> bool:
    """Whether answers are read as one of some options, so that accuracy can be given."""
    return form != "open" or bench_task in LABEL_TASKS


def main_metric(bench_task: str, form: str) -> str:
    """The metric on which a model is compared with baselines and other models: a mean over answers."""
    if form == "likelihood":
        return f"accuracy ({LIKELIHOOD})"
    return f"accuracy ({LENIENT})" if has_labels(bench_task, form) else "ROUGE-L"


def measure(pairs: Sequence[Pair], tools: Tools) -> list[Measurement]:
    """All metrics of answers to one form of question in one task; the main metric is among them."""
    bench_task, form = pairs[0].item.bench_task, pairs[0].item.form
    measured = _labels(pairs, tools) if has_labels(bench_task, form) else _exact(pairs)
    return measured + (_texts(pairs, tools) if form == "open" else [])


def main_measurement(pairs: Sequence[Pair], tools: Tools) -> Measurement:
    """The main metric alone: breakdowns need no other."""
    bench_task, form = pairs[0].item.bench_task, pairs[0].item.form
    references = [pair.item.reference for pair in pairs]
    if not has_labels(bench_task, form):
        return overlap.rouge([pair.prediction.answer for pair in pairs], references)
    reading = LIKELIHOOD if form == "likelihood" else LENIENT
    return closed.accuracy(f"accuracy ({reading})", read(pairs, reading, tools), references, READINGS[reading])


def read(pairs: Sequence[Pair], reading: str, tools: Tools) -> list[str | None]:
    """The option of each answer in one of `READINGS`; None where it cannot be read.

    The answer of the form likelihood is the option that the model found likeliest, and is read as it stands.
    """
    function = closed.read_leniently if reading == LENIENT else closed.read_strictly
    found = []
    for pair in pairs:
        item, prediction = pair.item, pair.prediction
        if reading == LIKELIHOOD and prediction.likelihoods:
            found.append(likelihoods.choose({option: value.mean for option, value in prediction.likelihoods.items()}))
        else:
            options = prediction.options or item.options or tools.labels.get(item.task, [item.reference])
            found.append(function(prediction.answer, options, item.form == "choice"))
    return found


def _labels(pairs: Sequence[Pair], tools: Tools) -> list[Measurement]:
    form = pairs[0].item.form
    references = [pair.item.reference for pair in pairs]
    with_likelihoods = all(pair.prediction.likelihoods for pair in pairs)
    readings = [] if form == "likelihood" else [STRICT, LENIENT]
    if form == "likelihood" or with_likelihoods:
        readings.append(LIKELIHOOD)
    measured = []
    for reading in readings:
        answers, signature = read(pairs, reading, tools), READINGS[reading]
        measured.append(closed.accuracy(f"accuracy ({reading})", answers, references, signature))
        if form != "choice":
            measured.append(closed.balanced_accuracy(f"balanced accuracy ({reading})", answers, references, signature))
            measured.append(closed.f1(f"F1 ({reading})", answers, references, signature))
        if reading == LENIENT:
            measured.append(closed.unreadable(answers, signature))
    if with_likelihoods and form == "likelihood":
        sums = [
            likelihoods.choose({option: value.sum for option, value in (pair.prediction.likelihoods or {}).items()})
            for pair in pairs
        ]
        name = "accuracy (likelihood, sum)"
        measured.append(closed.accuracy(name, sums, references, "option of the highest summed log-probability"))
    if form == "yes_no" and with_likelihoods:
        p_yes, is_yes = yes_probabilities(pairs)
        measured += [calibration.calibration_error(p_yes, is_yes), calibration.brier(p_yes, is_yes)]
    return measured


def yes_probabilities(pairs: Sequence[Pair]) -> tuple[list[float], list[bool]]:
    """The probability of yes against no, and whether yes is right, for pairs with likelihoods."""
    p_yes, is_yes = [], []
    for pair in pairs:
        if pair.prediction.likelihoods:
            scores = {closed.normalise(option): value.sum for option, value in pair.prediction.likelihoods.items()}
            p_yes.append(likelihoods.probabilities(scores)["yes"])
            is_yes.append(closed.normalise(pair.item.reference) == "yes")
    return p_yes, is_yes


def _exact(pairs: Sequence[Pair]) -> list[Measurement]:
    read_answers = [closed.read_strictly(pair.prediction.answer, [pair.item.reference]) for pair in pairs]
    return [closed.accuracy("exact match", read_answers, [pair.item.reference for pair in pairs], READINGS[STRICT])]


def _texts(pairs: Sequence[Pair], tools: Tools) -> list[Measurement]:
    answers, references = [pair.prediction.answer for pair in pairs], [pair.item.reference for pair in pairs]
    measured = overlap.measure(answers, references)
    if tools.extractor is not None:
        measured += term_scores(answers, references, tools.extractor)
    if not has_labels(pairs[0].item.bench_task, "open"):
        measured += finding_scores(answers, references)
    if tools.text_model is not None:
        measured += tools.text_model.measure(answers, references)
    if needs_external(pairs):
        ids = [pair.item.id for pair in pairs]
        measured += [external.read_scores(name, file, ids) for name, file in tools.external.items()]
    return measured


def needs_external(pairs: Sequence[Pair]) -> bool:
    """Whether external metrics score these answers: texts, of the model itself."""
    item, condition = pairs[0].item, pairs[0].prediction.condition
    return condition == SCAN and not has_labels(item.bench_task, item.form)
