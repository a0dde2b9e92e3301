"""Answers that are there already, scored again: a results folder with other tools, or a result CSV of the published form."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import published
from .items import read_items
from .metrics import closed, external, overlap
from .metrics.findings import finding_scores
from .metrics.medical_terms import Extractor, term_scores
from .metrics.similarity import TextModel
from .predictions import SCAN, read_predictions
from .readings import needs_external
from .report import format_interval, write_report
from .scores import default_tools, pair_up, read_scores, score_run
from .statistics import Interval, Measurement, cluster_interval, to_json
from .summary import table


def rescore(
    out: Path,
    data: Path | None,
    extractor: Extractor | None,
    text_model: TextModel | None,
    external_files: Mapping[str, Path],
    export_texts: Path | None,
) -> int:
    """Score a results folder again and write its page; or only write its texts for external metrics.

    Returns:
        How many scores, or texts, were written.

    Raises:
        BenchError: the folder is no results folder.
        MetricError: an external file is not whole.
    """
    items = read_items(out / "items.jsonl")
    if export_texts is not None:
        found = pair_up(items, read_predictions(out / "predictions.jsonl"))
        pairs = [
            pair for (_, condition), part in found.items() if condition == SCAN and needs_external(part) for pair in part
        ]
        answers, references = [pair.prediction.answer for pair in pairs], [pair.item.reference for pair in pairs]
        external.write_texts(answers, references, [pair.item.id for pair in pairs], export_texts)
        return len(pairs)
    tools = default_tools(items)
    score_run(out, replace(tools, extractor=extractor or tools.extractor, text_model=text_model, external=external_files))
    write_report(out, data)
    return len(read_scores(out)["scores"])


@dataclass(frozen=True)
class PublishedScores:
    """The scores of a result CSV: data set → metric with its interval over rows, because the CSV has no patients."""

    rows: int
    parts: Mapping[str, Sequence[tuple[Measurement, Interval]]]


def score_published(file: Path, extractor: Extractor | None = None, text_model: TextModel | None = None) -> PublishedScores:
    """Score a result CSV of the published form, by data set, with every definition of BLEU and ROUGE.

    Raises:
        BenchError: the file is no such CSV.
    """
    results = published.read_results(file)
    extractor = extractor or default_tools([]).extractor
    by_dataset: defaultdict[str, list[published.Result]] = defaultdict(list)
    for result in results:
        by_dataset[result.dataset].append(result)
    parts = {}
    for name, rows in sorted(by_dataset.items()):
        answers, references = [row.answer for row in rows], [row.reference for row in rows]
        measured = _closed(answers, references) or _texts(answers, references, extractor, text_model)
        parts[name] = [(m, cluster_interval(m, range(len(rows)))) for m in measured]
    return PublishedScores(len(results), parts)


def _closed(answers: Sequence[str], references: Sequence[str]) -> list[Measurement]:
    """Accuracy, balanced accuracy and F1 where every reference is yes or no; else nothing."""
    if not all(closed.normalise(reference) in closed.YES_NO for reference in references):
        return []
    measured = []
    for reading, function in (("strict", closed.read_strictly), ("lenient", closed.read_leniently)):
        read = [function(answer, closed.YES_NO) for answer in answers]
        signature = f"{reading} reading"
        measured.append(closed.accuracy(f"accuracy ({reading})", read, references, signature))
        measured.append(closed.balanced_accuracy(f"balanced accuracy ({reading})", read, references, signature))
        measured.append(closed.f1(f"F1 ({reading})", read, references, signature))
    return measured


def _texts(
    answers: Sequence[str], references: Sequence[str], extractor: Extractor | None, text_model: TextModel | None
) -> list[Measurement]:
    exact = [closed.read_strictly(a, [r]) for a, r in zip(answers, references, strict=True)]
    measured = [
        closed.accuracy("exact match", exact, references, "strict reading"),
        *overlap.definitions(answers, references),
    ]
    if extractor is not None:
        measured += term_scores(answers, references, extractor)
    measured += finding_scores(answers, references)
    return measured + (text_model.measure(answers, references) if text_model is not None else [])


def published_text(scores: PublishedScores) -> str:
    """The scores as Markdown, with the known faults of the published benchmark and what the intervals mean."""
    lines = [f"RadBench as published: {scores.rows} rows. Values in percent.", ""]
    for name, rows in scores.parts.items():
        lines += [f"## {name}", ""]
        cells = []
        for measurement, interval in rows:
            value = measurement.score
            text = "–" if value != value else f"{100 * value:.2f}"
            cells.append(
                [measurement.name, text, format_interval(to_json(interval)), str(measurement.used), measurement.signature]
            )
        lines += [*table(["Metric", "Value", "95 % interval", "Rows", "Definition"], cells), ""]
    lines += [
        "Intervals are by row: the CSV has no patient ids, so they are too narrow where a patient has several rows.",
        "No definition can be told to be that of the paper: none was published.",
        "",
        "Known faults of RadBench as published:",
        *(f"- {fault}" for fault in published.FAULTS),
    ]
    return "\n".join([*lines, ""])
