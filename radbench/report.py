"""`report.html`: one page without scripts or requests, from the files of a results folder."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import published, radar
from .conditions import STABILITY
from .items import BENCH_TASKS, read_items
from .metrics import findings
from .pictures import Picture, draw_records
from .predictions import SCAN, read_predictions
from .readings import Pair, Tools, labels_of, main_measurement, main_metric
from .scores import NOT_TO_BEAT, best_baseline, pair_up, part_title, read_run, read_scores, verdict
from .summary import write_summary

PAGE = "report.html"
TEMPLATE = "report.html.jinja"
TASK_TITLES = {
    "modality": "Modality recognition",
    "diagnosis": "Disease diagnosis",
    "vqa": "Visual question answering",
    "report": "Report generation",
    "rationale": "Rationale diagnosis",
}
FORM_TITLES = {
    "open": "open questions",
    "yes_no": "yes/no questions",
    "choice": "multiple choice",
    "likelihood": "likelihood of options",
}
# Lines of a radar, in the order of their styles.
RADAR_CONDITIONS = (SCAN, "no image", "most frequent answer", "constant sentence", "nearest training answer")
MOST_AXES = 8
EXAMPLES = 3  # right and wrong answers each, a kind of question
LONGEST = 600  # characters of an answer that an example shows
WEAK_PARTS = 12
# Metrics of which less is better, or which are another reading of one that is shown.
NO_AXIS = ("unreadable answers", "calibration error", "Brier score", "accuracy (likelihood, sum)")


def write_report(out: Path, data: str | Path | None) -> None:
    """Write `report.html` and `summary.md` into a results folder that has `scores.json`.

    Args:
        out: the folder.
        data: the data set, for the pictures of the examples; None draws none.

    Raises:
        BenchError: a file is missing or broken.
    """
    scores, run = read_scores(out), read_run(out)
    items = read_items(out / "items.jsonl")
    pairs = pair_up(items, read_predictions(out / "predictions.jsonl"))
    tools = Tools(labels=labels_of(items))
    chosen = {key: _examples(found, tools) for (key, condition), found in pairs.items() if condition == SCAN}
    records = {pair.item.record for kinds in chosen.values() for pair in (*kinds[0], *kinds[1])}
    pictures = draw_records(Path(data), records) if data is not None else {}
    page = render_page(
        title=f"{scores['benchmark']} {scores['version']}: {scores['model']}",
        scores=scores,
        run=run,
        warnings=_group_warnings(scores),
        overview=_overview(scores),
        tasks=_tasks(scores, chosen, pictures),
        weak=_weak_parts(scores),
        stability=[
            row for row in scores["scores"] if row["condition"] in STABILITY and row["metric"] == "unchanged answers"
        ],
        blind_spots=_blind_spots(scores["blind_spots"]),
        cases=findings.check(),
        published=published.published_scores(),
        faults=published.FAULTS,
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    write_summary(scores, out)


def render_page(template: str = TEMPLATE, **context: Any) -> str:
    """A page of this folder's template; everything is escaped but the SVG of `radar`, which escapes its own texts."""
    return _environment().get_template(template).render(**context)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {
        "percent": percent,
        "interval": format_interval,
        "task": TASK_TITLES.get,
        "p": format_p,
        "verdict": verdict,
    }
    environment.globals |= {"form_titles": FORM_TITLES}
    return environment


def percent(value: float | None) -> str:
    """A share in percent with one decimal; a dash for None.

    Example:
        >>> percent(0.4567), percent(None)
        ('45.7', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def format_interval(row: Mapping[str, Any]) -> str:
    """The interval of a row of `scores.json` in percent; the reason where there is none.

    Example:
        >>> format_interval({"interval": [0.1, 0.25], "interval_kind": "Wilson"})
        '10.0–25.0'
    """
    return "–".join(percent(end) for end in row["interval"]) if row["interval"] else row["interval_kind"]


def format_p(value: float | None) -> str:
    """A p-value; the permutation tests cannot tell values below 0.001 apart.

    Example:
        >>> format_p(0.0002), format_p(0.72), format_p(None)
        ('< 0.001', '0.720', '–')
    """
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["bench_task"], row["form"]


def keys_of(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(bench_task, form) in the order of `scores.json`."""
    return list(dict.fromkeys(_key(row) for row in scores["scores"] if row["condition"] == SCAN))


def values_of(scores: Mapping[str, Any]) -> dict[tuple[tuple[str, str], str, str], dict[str, Any]]:
    """((bench_task, form), condition, metric) → the row."""
    return {(_key(row), row["condition"], row["metric"]): row for row in scores["scores"]}


def _overview(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The radar over all kinds of question, by their main metric; None where there are fewer than three."""
    axes = [(key, main_metric(*key)) for key in keys_of(scores)]
    return _radar(
        scores, "Main metric of each kind of question", axes, [f"{key[0]}\n{key[1].replace('_', '/')}" for key, _ in axes]
    )


def _radar(
    scores: Mapping[str, Any], title: str, axes: Sequence[tuple[Any, str]], names: Sequence[str]
) -> dict[str, Any] | None:
    if len(axes) < 3:
        return None
    rows = values_of(scores)
    series = []
    for style, condition in enumerate(RADAR_CONDITIONS):
        values = [row["value"] if (row := rows.get((key, condition, metric))) else None for key, metric in axes]
        if any(value is not None for value in values):
            series.append(radar.Series("the model" if condition == SCAN else condition, values, style))
    return {"title": title, "svg": radar.draw_radar(title, names, series), "legend": [(s.style, s.name) for s in series]}


def _tasks(
    scores: Mapping[str, Any], chosen: Mapping[Any, tuple[list[Pair], list[Pair]]], pictures: Mapping[str, Picture]
) -> list[dict[str, Any]]:
    """What the page shows of each task: its radar, and its kinds of question one after the other."""
    tasks, keys = [], keys_of(scores)
    for task in BENCH_TASKS:
        task_keys = [key for key in keys if key[0] == task]
        if task_keys:
            parts = [_part(scores, key, chosen.get(key, ([], [])), pictures) for key in task_keys]
            tasks.append({"name": task, "title": TASK_TITLES[task], "radar": _task_radar(scores, task_keys), "parts": parts})
    return tasks


def _task_radar(scores: Mapping[str, Any], keys: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    rows = [row for row in scores["scores"] if row["condition"] == SCAN and _key(row) in keys]
    axes = [(_key(row), row["metric"]) for row in rows if row["metric"] not in NO_AXIS and "strict" not in row["metric"]]
    if len(axes) > MOST_AXES:
        # Accuracy, balanced accuracy and F1 go first; of open labels the metrics of words say the same again.
        axes = [axis for axis in axes if axis[0][0] not in ("modality", "diagnosis") or "(" in axis[1]][:MOST_AXES]
    names = [_axis_name(metric, key[1] if len(keys) > 1 else "") for key, metric in axes]
    return _radar(scores, TASK_TITLES[keys[0][0]], axes, names)


def _axis_name(metric: str, form: str) -> str:
    """In two lines: the metric, then its reading and the form of question.

    Example:
        >>> _axis_name("balanced accuracy (lenient)", "yes_no")
        'balanced accuracy\\nlenient, yes/no'
    """
    name, _, reading = metric.rstrip(")").partition(" (")
    second = ", ".join(dict.fromkeys(part for part in (reading, form.replace("_", "/")) if part))
    return f"{name}\n{second}" if second else name


def _part(
    scores: Mapping[str, Any],
    key: tuple[str, str],
    examples: tuple[list[Pair], list[Pair]],
    pictures: Mapping[str, Picture],
) -> dict[str, Any]:
    """One kind of question: conditions on the main metric, all metrics, breakdowns, calibration, examples."""
    metric, rows = main_metric(*key), [row for row in scores["scores"] if _key(row) == key]
    tests = {row["condition"]: row for row in scores["significance"] if _key(row) == key}
    conditions = [
        {**row, "test": tests.get(row["condition"]), "to_beat": row["condition"] not in NOT_TO_BEAT}
        for row in rows
        if row["metric"] == metric and row["condition"] not in STABILITY
    ]
    rival = best_baseline(scores, key)
    others = [row for row in rows if row["condition"] == SCAN]
    names = [row["condition"] for row in conditions]
    matrix = [
        (m["metric"], [next((r for r in rows if r["condition"] == c and r["metric"] == m["metric"]), None) for c in names])
        for m in others
    ]
    breakdowns: defaultdict[str, list[Any]] = defaultdict(list)
    for row in scores["breakdowns"]:
        if _key(row) == key:
            breakdowns[row["by"]].append(row)
    bins = scores["calibration"].get(key[0]) if key[1] == "yes_no" else None
    diagram = radar.draw_reliability(f"Calibration of yes/no, {key[0]}", bins) if bins else None
    shown = [
        (kind, [_example(pair, pictures) for pair in found])
        for kind, found in zip(("right", "wrong"), examples, strict=True)
    ]
    return {
        "form": key[1],
        "title": FORM_TITLES[key[1]],
        "metric": metric,
        "conditions": conditions,
        "rival": next((row for row in conditions if row["condition"] == rival["condition"]), None) if rival else None,
        "metrics": others,
        "names": names,
        "matrix": matrix,
        "breakdowns": dict(breakdowns),
        "diagram": diagram,
        "examples": shown,
        "closed": metric.startswith("accuracy"),
    }


def _examples(pairs: Sequence[Pair], tools: Tools) -> tuple[list[Pair], list[Pair]]:
    """Right and wrong answers, or those with the highest and lowest ROUGE-L, chosen among equals by hash and not by look."""
    measurement = main_measurement(pairs, tools)
    scored = [
        (row[0], hashlib.sha256(pair.item.id.encode()).hexdigest(), pair)
        for row, pair in zip(measurement.rows, pairs, strict=True)
        if row[1]
    ]
    best = [pair for value, _, pair in sorted(scored, key=lambda entry: (-entry[0], entry[1])) if value >= 0.5]
    worst = [pair for value, _, pair in sorted(scored, key=lambda entry: entry[:2]) if value < 0.5]
    return best[:EXAMPLES], worst[:EXAMPLES]


def _example(pair: Pair, pictures: Mapping[str, Picture]) -> dict[str, Any]:
    return {
        "picture": pictures.get(pair.item.record),
        "question": pair.item.question[:LONGEST],
        "reference": pair.item.reference[:LONGEST],
        "answer": pair.prediction.answer[:LONGEST] or "(no answer)",
        "note": pair.item.note,
        "id": pair.item.id,
    }


def _weak_parts(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parts of the data in which the model is worse than over all: the whole interval lies below the total."""
    totals = {
        key: row["value"]
        for (key, condition, metric), row in values_of(scores).items()
        if condition == SCAN and metric == main_metric(*key)
    }
    weak = []
    for row in scores["breakdowns"]:
        total = totals.get(_key(row))
        if row["interval"] and total is not None and row["interval"][1] < total:
            weak.append({**row, "total": total})
    return sorted(weak, key=lambda row: row["value"] - row["total"])[:WEAK_PARTS]


def _group_warnings(scores: Mapping[str, Any]) -> dict[str, list[str]]:
    """Title → its warnings: those about the whole run under an empty title, the others by kind of question."""
    titles = {f"{part_title(key)}: ": f"{TASK_TITLES[key[0]]}, {FORM_TITLES[key[1]]}" for key in keys_of(scores)}
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for warning in scores["warnings"]:
        start = next((start for start in titles if warning.startswith(start)), "")
        text = warning.removeprefix(start)
        grouped[titles.get(start, "")].append(text[:1].upper() + text[1:])
    return {title: grouped[title] for title in sorted(grouped, key=bool)}


def _blind_spots(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of what metrics cannot see: changes as columns, metrics as rows."""
    changes = list(dict.fromkeys(row["change"] for row in rows))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    cells = {(row["metric"], row["change"]): row for row in rows}
    table = [(metric, [cells.get((metric, change)) for change in changes]) for metric in metrics]
    heads = [
        (change, next(row for metric, row in ((m, cells.get((m, change))) for m in metrics) if row)) for change in changes
    ]
    return {"heads": heads, "table": table}
