"""Metrics that need weights, run in an environment of their own: texts go out as files, scores come back as a CSV.

RadGraph, RaTEScore, GREEN and CheXbert download weights when they start and pin packages that do not go together with
transformers 5. So radbench writes `hyps.txt`, `refs.txt` (an answer a line) and `ids.txt`; whoever has the weights writes a
CSV with the columns `id` and `score`; radbench reads it, checks it and gives it intervals like any other metric.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from ..statistics import Measurement, mean_of
from .errors import MetricError

# Name → what its scores are, and the package that computes them.
KNOWN = {
    "radgraph": "RadGraph F1 (package radgraph)",
    "ratescore": "RaTEScore (package ratescore)",
    "green": "GREEN (package green-score)",
    "chexbert": "CheXbert F1 (package f1chexbert)",
}
ANSWERS, REFERENCES, IDS = "hyps.txt", "refs.txt", "ids.txt"


def write_texts(answers: Sequence[str], references: Sequence[str], ids: Sequence[str], folder: Path) -> None:
    """Write `hyps.txt`, `refs.txt` and `ids.txt`: as many lines as answers, line breaks within a text are spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in ((ANSWERS, answers), (REFERENCES, references), (IDS, ids)):
        (folder / name).write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")


def check_name(name: str) -> None:
    """Raise where no such metric is known.

    Raises:
        MetricError: with the names that are.
    """
    if name not in KNOWN:
        raise MetricError(f"{name}: is no external metric; these are: {', '.join(KNOWN)}.")


def read_scores(name: str, file: Path, ids: Sequence[str]) -> Measurement:
    """The scores of a CSV with the columns `id` and `score`, in the order of `ids`.

    Raises:
        MetricError: the metric is unknown, the file cannot be read, an id lacks its score, or a score is no number.
    """
    check_name(name)
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            if not {"id", "score"} <= set(reader.fieldnames or ()):
                raise MetricError(f"{file}: needs the columns id and score.")
            found = {row["id"]: _number(row["score"], file, reader.line_num) for row in reader}
    except (OSError, UnicodeDecodeError) as error:
        raise MetricError(f"{file}: cannot be read ({error}); write it with the package of {KNOWN[name]}.") from error
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise MetricError(f"{file}: lacks the scores of {len(missing)} of {len(ids)} answers, the first is {missing[0]}.")
    return mean_of(name, [found[id_] for id_ in ids], f"{KNOWN[name]}|computed outside radbench|mean of answers")


def _number(text: str, file: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MetricError(f"{file}, line {line}: the score {text!r} is no number.")
    return value
