"""Several models on the same questions: values with intervals, paired tests, a radar, a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan
from pathlib import Path
from typing import Any

from . import radar, statistics
from .items import BenchError, Item, read_items
from .predictions import SCAN, read_predictions
from .readings import Pair, Tools, labels_of, main_measurement, main_metric, measure
from .report import FORM_TITLES, TASK_TITLES, format_p, render_page
from .scores import (
    ALPHA,
    Key,
    correct_p_values,
    default_tools,
    groups_of,
    model_name,
    pair_up,
    read_run,
    score_entry,
    sort_keys,
)
from .summary import cell, table

TEMPLATE = "compare.html.jinja"
MOST_MODELS = 5  # lines that a radar can show


@dataclass(frozen=True)
class Run:
    """A results folder: the model's name, its items by id, and its answers to the scans by kind of question."""

    name: str
    items: Mapping[str, Item]
    pairs: Mapping[Key, Sequence[Pair]]


def read_results(folder: Path) -> Run:
    """The answers of a results folder.

    Raises:
        BenchError: a file is missing or broken.
    """
    items = read_items(folder / "items.jsonl")
    pairs = pair_up(items, read_predictions(folder / "predictions.jsonl"))
    answers = {key: found for (key, condition), found in pairs.items() if condition == SCAN}
    return Run(model_name(read_run(folder)), {item.id: item for item in items}, answers)


def compare(folders: Sequence[Path], tools: Tools | None = None) -> dict[str, Any]:
    """Compare models on the questions that all of them were asked in the same words.

    Args:
        folders: two and more results folders.
        tools: as for `scores.score_run`.

    Returns:
        {"models", "shared", "left_out", "scores": rows with "model" as in `scores.json`, "tests": [{"bench_task", "form",
        "metric", "first", "second", "difference", "p", "p_holm", "better": name or None}]}

    Raises:
        BenchError: fewer than two folders, a broken folder, or no question in common.
    """
    if len(folders) < 2:
        raise BenchError("a comparison needs two results folders and more.")
    runs = _with_distinct_names([read_results(folder) for folder in folders], folders)
    shared = [item for id_, item in runs[0].items.items() if all(run.items.get(id_) == item for run in runs[1:])]
    if not shared:
        raise BenchError("these results have no question in common: run the models with the same --items.")
    tools = tools or default_tools(shared)
    tools = Tools(tools.extractor, tools.text_model, labels_of(shared))
    ids = {item.id for item in shared}
    rows, tests = [], []
    for key in sort_keys(set.intersection(*(set(run.pairs) for run in runs))):
        answered = set.intersection(ids, *({pair.item.id for pair in run.pairs[key]} for run in runs))
        if not answered:
            continue
        pairs = [[pair for pair in run.pairs[key] if pair.item.id in answered] for run in runs]
        for run, found in zip(runs, pairs, strict=True):
            entries = (score_entry(key, SCAN, m, groups_of(found)) for m in measure(found, tools))
            rows += [{"model": run.name, **entry} for entry in entries]
        tests += _tests(key, [run.name for run in runs], pairs, tools)
    correct_p_values(tests)
    for test in tests:
        better = test["first"] if test["difference"] > 0 else test["second"]
        test["better"] = better if test["p_holm"] is not None and test["p_holm"] < ALPHA else None
    left_out = len({id_ for run in runs for id_ in run.items} - ids)
    return {
        "models": [run.name for run in runs],
        "shared": len(shared),
        "left_out": left_out,
        "scores": rows,
        "tests": tests,
    }


def _with_distinct_names(runs: Sequence[Run], folders: Sequence[Path]) -> list[Run]:
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return list(runs)
    return [Run(f"{run.name} ({folder})", run.items, run.pairs) for run, folder in zip(runs, folders, strict=True)]


def _tests(key: Key, names: Sequence[str], pairs: Sequence[Sequence[Pair]], tools: Tools) -> list[dict[str, Any]]:
    measured = [main_measurement(found, tools) for found in pairs]
    found = []
    for first, second in combinations(range(len(names)), 2):
        test = statistics.sign_flip_test(measured[first], measured[second], groups_of(pairs[first]))
        found.append(
            {
                "bench_task": key[0],
                "form": key[1],
                "metric": main_metric(*key),
                "first": names[first],
                "second": names[second],
                "difference": test.difference,
                "n": test.n,
                "groups": test.groups,
                "p": None if isnan(test.p) else test.p,
            }
        )
    return found


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown: the main metrics by model, then the tests."""
    models, rows = comparison["models"], main_rows(comparison)
    lines = [
        f"{comparison['shared']} questions in common; {comparison['left_out']} left out. "
        "Percent, 95 % intervals by patient (by image where a set has no patient ids).",
        "",
    ]
    heads = [(key, metric) for key, metric in rows]
    lines += table(
        ["Task", "Questions", "Metric", *models],
        ([key[0], FORM_TITLES[key[1]], metric, *map(cell, rows[key, metric])] for key, metric in heads),
    )
    lines += ["", "Paired sign-flip tests by patient, p corrected over the table (Holm):", ""]
    lines += table(
        ["Task", "Questions", "First", "Second", "Difference", "p (Holm)", "Better"],
        (
            [
                test["bench_task"],
                FORM_TITLES[test["form"]],
                test["first"],
                test["second"],
                f"{100 * test['difference']:+.1f}",
                format_p(test["p_holm"]),
                test["better"] or "not told apart",
            ]
            for test in comparison["tests"]
        ),
    )
    return "\n".join([*lines, ""])


def main_rows(comparison: Mapping[str, Any]) -> dict[tuple[Key, str], list[dict[str, Any] | None]]:
    """(key, main metric) → the row of each model."""
    found: dict[tuple[Key, str], list[dict[str, Any] | None]] = {}
    for row in comparison["scores"]:
        key = row["bench_task"], row["form"]
        if row["metric"] == main_metric(*key):
            places = found.setdefault((key, row["metric"]), [None] * len(comparison["models"]))
            places[comparison["models"].index(row["model"])] = row
    return found


def write_comparison(comparison: Mapping[str, Any], file: Path, ratings: Mapping[str, Any] | None = None) -> None:
    """Write the page: radar, table of all metrics, tests, and the human ratings where there are any.

    Args:
        comparison: what `compare` returns.
        file: the HTML file.
        ratings: what `rating.agreement.summarise` returns.
    """
    rows = main_rows(comparison)
    metrics: dict[tuple[Key, str], dict[str, Any]] = {}
    for row in comparison["scores"]:
        metrics.setdefault(((row["bench_task"], row["form"]), row["metric"]), {})[row["model"]] = row
    page = render_page(
        TEMPLATE,
        title=f"RadBench: {' and '.join(comparison['models'])}",
        comparison=comparison,
        diagram=_radar(comparison["models"], rows),
        rows=[(TASK_TITLES[key[0]], FORM_TITLES[key[1]], metric, found) for (key, metric), found in rows.items()],
        metrics=[(TASK_TITLES[key[0]], FORM_TITLES[key[1]], metric, found) for (key, metric), found in metrics.items()],
        ratings=ratings,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def _radar(
    models: Sequence[str], rows: Mapping[tuple[Key, str], Sequence[Mapping[str, Any] | None]]
) -> dict[str, Any] | None:
    if len(rows) < 3:
        return None
    axes = [f"{key[0]}\n{key[1].replace('_', '/')}" for key, _ in rows]
    series = [
        radar.Series(name, [found[place]["value"] if found[place] else None for found in rows.values()], place)  # type: ignore[index]
        for place, name in enumerate(models[:MOST_MODELS])
    ]
    title = "Main metric of each kind of question"
    return {"title": title, "svg": radar.draw_radar(title, axes, series), "legend": [(s.style, s.name) for s in series]}
