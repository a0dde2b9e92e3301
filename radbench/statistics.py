"""Intervals and tests for answers that come in groups: several questions about one patient are not independent.

A metric is given as sums (`Measurement`): each answer adds a row of numbers, and the metric is a function of the total.
Accuracy is (right answers, answers); corpus BLEU is (matches and candidates per n-gram length, lengths). Resampling
patients then costs one matrix product for any metric, and corpus metrics are resampled as what they are and not as means.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 4_000
CHUNK = 500  # resamples at a time: CHUNK × groups counts are in memory
PERMUTATIONS = 9_999
LEVEL = 0.95


@dataclass(frozen=True)
class Measurement:
    """A metric over n answers.

    Args:
        name: as tables have it, such as "accuracy (strict)".
        rows: (n, k) numbers, one row an answer.
        value: sums (…, k) → values (…), shares from 0 to 1, NaN where the metric is undefined (0/0).
        signature: everything that decides the number: package, version, tokenization, averaging, conventions.
        proportion: whether a row is (0 or 1, 0 or 1) and the value their quotient, so that Wilson's interval applies.
        used: how many answers enter the value; answers for which the metric is undefined do not.
    """

    name: str
    rows: Array
    value: Callable[[Array], Array]
    signature: str
    proportion: bool = False
    used: int = 0

    @property
    def score(self) -> float:
        """The value over all answers."""
        return float(self.value(self.rows.sum(axis=0)))

    @property
    def is_mean(self) -> bool:
        """Whether the value is a mean over answers, so that the answers of two models can be compared one by one."""
        return self.value is divide_pair


def divide_pair(sums: Array) -> Array:
    """(…, 2) → first / second, NaN where the second is 0."""
    return divide(sums[..., 0], sums[..., 1])


def divide(numerator: Array, denominator: Array) -> Array:
    """Quotients; NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(
        numerator, denominator, out=np.full(np.broadcast(numerator, denominator).shape, np.nan), where=denominator != 0
    )


def mean_of(name: str, values: Sequence[float] | Array, signature: str) -> Measurement:
    """The mean of one number an answer. NaN marks an answer for which the number is undefined: it is left out.

    Example:
        >>> mean_of("recall", [1.0, 0.5, float("nan")], "").score
        0.75
    """
    numbers = np.asarray(values, float)
    defined = ~np.isnan(numbers)
    rows = np.stack([np.where(defined, numbers, 0.0), defined.astype(float)], axis=1)
    return Measurement(name, rows, divide_pair, signature, bool(np.isin(numbers[defined], (0, 1)).all()), int(defined.sum()))


@dataclass(frozen=True)
class Interval:
    """A 95 % interval: `low` and `high` are None where none can be given; `kind` says how it was made, or why not."""

    low: float | None
    high: float | None
    kind: str


def cluster_interval(measurement: Measurement, groups: Sequence[Hashable], seed: int = 0) -> Interval:
    """The interval of a metric when patients are drawn anew: bias-corrected and accelerated bootstrap (BCa) of groups.

    Where all answers are right or all wrong, every resample is the same and a bootstrap would claim certainty: a share then
    gets Wilson's interval with the number of groups as n (as if each patient were one answer, the cautious reading).

    Args:
        measurement: the metric.
        groups: the patient of each answer.
        seed: of the resampling.

    Example:
        >>> right = mean_of("accuracy", [1.0] * 50, "")
        >>> interval = cluster_interval(right, range(50))
        >>> round(interval.low, 3), interval.high, interval.kind
        (0.929, 1.0, 'Wilson, n = groups')
    """
    sums = sum_by_group(measurement.rows, groups)
    sums = sums[np.any(sums != 0, axis=1)] if measurement.is_mean else sums
    n, score = len(sums), measurement.score
    if np.isnan(score):
        return Interval(None, None, "undefined")
    if measurement.proportion and score in (0.0, 1.0):
        low, high = wilson(round(score * n), n)
        return Interval(low, high, "Wilson, n = groups")
    if n < 2:
        return Interval(None, None, "none: one patient")
    values = _resample(sums, measurement.value, seed)
    values = values[~np.isnan(values)]
    if len(values) == 0 or values.min() == values.max():
        return Interval(None, None, "none: all patients alike")
    total = sums.sum(axis=0)
    jackknife = measurement.value(total - sums)
    low, high = _bca(values, score, jackknife[~np.isnan(jackknife)])
    if high - low < 1e-9:  # as where every class is all right or all wrong: resamples differ too rarely to show a spread
        return Interval(None, None, "none: all patients alike")
    return Interval(low, high, "cluster bootstrap, BCa")


def sum_by_group(rows: Array, groups: Sequence[Hashable]) -> Array:
    """(n, k) → (number of groups, k), in the order in which the groups appear."""
    index: dict[Hashable, int] = {}
    places = [index.setdefault(group, len(index)) for group in groups]
    sums = np.zeros((len(index), rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def _resample(sums: Array, value: Callable[[Array], Array], seed: int) -> Array:
    generator, n = np.random.default_rng(seed), len(sums)
    parts = []
    for start in range(0, RESAMPLES, CHUNK):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(CHUNK, RESAMPLES - start))
        parts.append(value(counts @ sums))
    return np.concatenate(parts)


def _bca(values: Array, score: float, jackknife: Array) -> tuple[float, float]:
    """Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 14.3; ties count half, as in SciPy."""
    below = ((values < score).mean() + (values <= score).mean()) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values)))
    deviation = jackknife.mean() - jackknife
    spread = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread else 0.0
    tails = stats.norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    shifted = bias + tails
    levels = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(values, levels)
    return float(low), float(high)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At the ends the formula gives 0 and 1 up to rounding.
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


@dataclass(frozen=True)
class Difference:
    """The mean difference of two models over the same answers, first minus second; `p` is NaN for one patient alone."""

    difference: float
    p: float
    n: int
    groups: int


def sign_flip_test(first: Measurement, second: Measurement, groups: Sequence[Hashable], seed: int = 0) -> Difference:
    """Paired two-sided permutation test of two means: the two models are swapped for whole patients.

    If the models are equally good, which of them gave which answer of a patient is arbitrary, so the sign of each patient's
    sum of differences may be flipped. A test by answer (McNemar) rejects far too often when a patient has several.
    Answers for which one of the two is undefined are left out of both.

    Raises:
        ValueError: a metric is no mean over answers (F1, corpus BLEU), or the numbers of answers differ.

    Example:
        >>> better, worse = mean_of("accuracy", [1.0] * 12, ""), mean_of("accuracy", [0.0] * 12, "")
        >>> sign_flip_test(better, worse, range(12)).difference
        1.0
        >>> sign_flip_test(better, worse, range(12)).p < 0.001
        True
    """
    if not first.is_mean or not second.is_mean or len(first.rows) != len(second.rows):
        raise ValueError(f"{first.name} and {second.name}: only means over the same answers can be compared in pairs.")
    both = (first.rows[:, 1] > 0) & (second.rows[:, 1] > 0)
    differences = (first.rows[:, 0] - second.rows[:, 0])[both]
    n = len(differences)
    if n == 0:
        return Difference(float("nan"), float("nan"), 0, 0)
    sums = sum_by_group(differences[:, None], [group for group, kept in zip(groups, both, strict=True) if kept])[:, 0]
    if len(sums) < 2:
        return Difference(float(differences.mean()), float("nan"), n, len(sums))
    moving = sums[np.abs(sums) > 1e-12]
    if len(moving) < 2:  # the sign of one patient alone can tell nothing, and SciPy refuses fewer than two
        return Difference(float(differences.mean()), 1.0, n, len(sums))
    test = stats.permutation_test(
        (moving,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return Difference(float(differences.mean()), float(test.pvalue), n, len(sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for a table of several (Holm 1979); NaN stays NaN and does not count.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if not np.isnan(p))
    corrected, largest = [float("nan")] * len(p_values), 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(p * (len(order) - rank), 1.0))
        corrected[index] = largest
    return corrected


def krippendorff_alpha(ratings: Sequence[Sequence[float]] | Array, domain: Sequence[float]) -> float:
    """Krippendorff's alpha for ordinal ratings: 1 is perfect agreement, 0 what chance gives.

    Args:
        ratings: (raters, units), NaN where a rater did not rate.
        domain: the possible ratings in their order.

    Returns:
        Alpha; NaN where all ratings are equal or no unit was rated twice, because then agreement cannot be told from chance.
    """
    import krippendorff

    table = np.asarray(ratings, float)
    pairable = table[:, (~np.isnan(table)).sum(axis=0) > 1] if table.size else table
    known = pairable[~np.isnan(pairable)]
    if known.size == 0 or known.min() == known.max():
        return float("nan")
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal", value_domain=list(domain)))


def bootstrap_units(
    statistic: Callable[[NDArray[np.intp]], float], units: int, seed: int = 0, resamples: int = 500
) -> Interval:
    """Percentile interval of a statistic of unit indices that is no function of sums (alpha, mean ranks)."""
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(units, size=units)) for _ in range(resamples)] if units > 1 else []
    numbers = np.asarray([value for value in values if not np.isnan(value)])
    if len(numbers) < resamples / 2:
        return Interval(None, None, "too few units: no interval")
    low, high = np.quantile(numbers, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), "bootstrap of units, percentile")


def to_json(interval: Interval) -> Mapping[str, Any]:
    """The fields of `scores.json`: `interval` ([low, high] or null) and `interval_kind`."""
    ends = None if interval.low is None or interval.high is None else [round(interval.low, 6), round(interval.high, 6)]
    return {"interval": ends, "interval_kind": interval.kind}
