"""`summary.md`: the numbers of `scores.json` as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .predictions import SCAN
from .readings import main_metric

SUMMARY = "summary.md"


def write_summary(scores: Mapping[str, Any], out: Path) -> None:
    """Write `summary.md` into a results folder."""
    (out / SUMMARY).write_text(summary(scores), encoding="utf-8")


def summary(scores: Mapping[str, Any]) -> str:
    """The main metric of each kind of question under each condition, then all metrics of the model, then the warnings."""
    lines = [
        f"# {scores['benchmark']} {scores['version']}: {scores['model']}",
        "",
        "Values in percent, 95 % intervals by patient (by image where a set has no patient ids).",
        "",
    ]
    keys = list(dict.fromkeys((row["bench_task"], row["form"]) for row in scores["scores"] if row["condition"] == SCAN))
    conditions = list(dict.fromkeys(row["condition"] for row in scores["scores"]))
    main = {
        (row["bench_task"], row["form"], row["condition"]): row
        for row in scores["scores"]
        if row["metric"] == main_metric(row["bench_task"], row["form"])
    }
    header = ["Condition", *(f"{task}, {form.replace('_', '/')}: {main_metric(task, form)}" for task, form in keys)]
    lines += table(header, ([condition, *(cell(main.get((*key, condition))) for key in keys)] for condition in conditions))
    lines += ["", "## All metrics of the model", ""]
    rows = (
        [row["bench_task"], row["form"].replace("_", "/"), row["metric"], cell(row), str(row["n"]), str(row["groups"])]
        for row in scores["scores"]
        if row["condition"] == SCAN
    )
    lines += table(["Task", "Form", "Metric", "Value", "Answers", "Patients or images"], rows)
    if scores["warnings"]:
        lines += ["", "## What not to conclude", "", *(f"- {warning}" for warning in scores["warnings"])]
    return "\n".join([*lines, ""])


def cell(row: Mapping[str, Any] | None) -> str:
    """Value and interval of a row of `scores.json` in percent.

    Example:
        >>> cell({"value": 0.5, "interval": [0.4, 0.6]}), cell(None)
        ('50.0 (40.0–60.0)', '–')
    """
    if row is None or row["value"] is None:
        return "–"
    ends = f" ({100 * row['interval'][0]:.1f}–{100 * row['interval'][1]:.1f})" if row["interval"] else ""
    return f"{100 * row['value']:.1f}{ends}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(text.replace('|', chr(92) + '|').replace(chr(10), ' ') for text in cells)} |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]
