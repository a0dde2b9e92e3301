"""What ratings say: mean rating and mean rank of each model, and whether the raters agree."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..items import BenchError
from ..statistics import Array, Interval, bootstrap_units, krippendorff_alpha
from .questions import read_questions
from .store import HIGHEST, LOWEST, Click, RatingStore


def summarise(folder: Path) -> dict[str, Any]:
    """The ratings of a folder in numbers.

    A rank is a model's place among all models for one rater and question, 1 the best; ties share the mean of their places.
    A rater who left out a model gives the question no ranks. Intervals draw the questions anew.

    Returns:
        {"questions", "raters", "alpha", "alpha_interval", "alpha_kind", "units", "tasks": task → model → mean rating,
        "models": [{"model", "mean", "mean_interval", "rank", "rank_interval", "n"}, …] from the best}

    Raises:
        BenchError: there is no rating.
    """
    rating = read_questions(folder)
    models, known = rating.models, {question.item for question in rating.questions}
    clicks = [click for click in RatingStore(folder).all() if click.model in models and click.item in known]
    if not clicks:
        raise BenchError(f"{folder}: has no rating yet; `radfm bench rate` opens the page.")
    raters, items = sorted({click.rater for click in clicks}), sorted({click.item for click in clicks})
    table = np.full((len(raters), len(items), len(models)), np.nan)
    for click in clicks:
        table[raters.index(click.rater), items.index(click.item), models.index(click.model)] = click.value
    ranks = _ranks(table)
    alpha, interval, units = _agreement(table)
    rows = []
    for place, model in enumerate(models):
        rows.append(
            {
                "model": model,
                "mean": _known(_mean(table[:, :, place])),
                "mean_interval": _mean_interval(table[:, :, place]),
                "rank": _known(_mean(ranks[:, :, place])),
                "rank_interval": _mean_interval(ranks[:, :, place]),
                "n": int((~np.isnan(table[:, :, place])).sum()),
            }
        )
    return {
        "questions": len(items),
        "raters": raters,
        "alpha": _known(alpha),
        "alpha_interval": _ends(interval),
        "alpha_kind": "no agreement can be given: no answer has two different raters, or all ratings are equal",
        "units": units,
        "models": sorted(rows, key=lambda row: -1.0 if row["mean"] is None else row["mean"], reverse=True),
        "tasks": _by_task(folder, clicks),
    }


def _ranks(table: Array) -> Array:
    """Ratings (raters, items, models) → ranks, NaN where a rater did not rate all models of an item."""
    complete = ~np.isnan(table).any(axis=2)
    ranks = np.full(table.shape, np.nan)
    if complete.any():
        ranks[complete] = stats.rankdata(-table[complete], axis=1)
    return ranks


def _agreement(table: Array) -> tuple[float, Interval, int]:
    """Alpha over answers (item and model), its interval by drawing items, and how many answers have two raters."""
    raters, items, _ = table.shape
    domain = range(LOWEST, HIGHEST + 1)
    units = int(((~np.isnan(table)).sum(axis=0) > 1).sum())
    if raters < 2:
        return float("nan"), Interval(None, None, "one rater"), units

    def alpha(drawn: NDArray[np.intp]) -> float:
        return krippendorff_alpha(table[:, drawn].reshape(raters, -1), domain)

    return alpha(np.arange(items)), bootstrap_units(alpha, items), units


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _mean_interval(values: Array) -> list[float] | None:
    """Of the mean of (raters, items), drawing the items anew."""
    return _ends(bootstrap_units(lambda drawn: _mean(values[:, drawn]), values.shape[1]))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _ends(interval: Interval) -> list[float] | None:
    return None if interval.low is None or interval.high is None else [interval.low, interval.high]


def _by_task(folder: Path, clicks: Sequence[Click]) -> dict[str, dict[str, float]]:
    """Task → model → mean rating, as the paper's table of human ratings has them."""
    task_of = {question.item: question.task for question in read_questions(folder).questions}
    values: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for click in clicks:
        values[task_of[click.item]][click.model].append(click.value)
    return {task: {model: sum(found) / len(found) for model, found in row.items()} for task, row in sorted(values.items())}
