"""RadBench as its authors published it: its result CSV, its known faults, its published scores.

The published test CSVs and JSONs are read by the source `radfm-tables` of `radfm data build`; what is here is the CSV of
results that the authors' test script writes: `Question,Ground Truth,Pred,belong_to`, each cell the `repr` of a list of one
string, image marks in the question.
"""

import ast
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .items import BenchError

COLUMNS = ("Question", "Ground Truth", "Pred", "belong_to")
FAULTS = (
    "Prompts, image positions, crops and the form of yes/no questions are drawn while loading and stored nowhere: "
    "two runs ask different questions.",
    "Modality: half of the rows are yes/no questions, and a row whose answer is no still names the true modality; a perfect "
    "model can expect 75 % of all rows.",
    "Modality: the test rows are the first rows of one list of images, with no split by patient.",
    "Rationale: the texts come from articles that training and test share, so that they can be recited without a scan.",
    "Report and rationale questions carry age, sex and history: a model that sees no scan has real information.",
    'References join their parts without a space ("seen.Impression:"), which changes how they are split into words.',
    "Samples that fail to load are left out without a word.",
    "The definitions of BLEU, ROUGE and UMLS precision and recall were never published.",
)


@dataclass(frozen=True)
class Result:
    """A row of the published result CSV: question, reference, answer, and the data set's name."""

    question: str
    reference: str
    answer: str
    dataset: str


def read_results(file: Path) -> list[Result]:
    """The rows of a result CSV of the published form.

    Raises:
        BenchError: the file cannot be read, lacks a column, or a cell is no list of one string; the message has the line.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise BenchError(f"{file}: lacks the columns {', '.join(sorted(missing))}; it needs {', '.join(COLUMNS)}.")
            rows = [Result(*(_cell(row[name], file, reader.line_num, name) for name in COLUMNS)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{file}: cannot be read as CSV ({error}).") from error
    if not rows:
        raise BenchError(f"{file}: has no row.")
    return rows


def _cell(text: str | None, file: Path, line: int, column: str) -> str:
    try:
        value = ast.literal_eval(text or "")
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], str):
        raise BenchError(
            f"{file}, line {line}: {column} is {(text or '')[:40]!r} and not a list of one string such as \"['CT']\"."
        )
    return value[0]


def write_results(results: Iterable[Result], file: Path) -> None:
    """Write a result CSV of the published form: `read_results` gives the same rows."""
    with open(file, "w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for result in results:
            writer.writerow([repr([value]) for value in (result.question, result.reference, result.answer, result.dataset)])


@cache
def published_scores() -> dict[str, Any]:
    """`published_scores.yaml`: what the authors published, labelled with its version."""
    import yaml

    return dict(yaml.safe_load(Path(__file__).with_name("published_scores.yaml").read_text(encoding="utf-8")))
