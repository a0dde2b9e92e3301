"""Whether "80 % yes" means that 80 of 100 are yes: expected calibration error, Brier score, reliability diagram."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..statistics import Array, Measurement, divide, mean_of, wilson

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers whose probability of yes lies in one tenth.

    Args:
        low, high: the ends of the tenth.
        n: how many answers.
        probability: their mean probability of yes.
        share: how many of them are yes.
        interval: Wilson's interval of `share`.
    """

    low: float
    high: float
    n: int
    probability: float
    share: float
    interval: tuple[float, float]


def _bin_of(probabilities: Array) -> Array:
    return np.minimum((probabilities * BINS).astype(int), BINS - 1)


def calibration_error(probabilities: Sequence[float], is_yes: Sequence[bool]) -> Measurement:
    """Expected calibration error of the probability of yes: Σ n_b / n · |mean probability − share of yes| over ten bins.

    Example:
        >>> round(calibration_error([0.8] * 5, [True, True, True, True, False]).score, 6)
        0.0
        >>> calibration_error([1.0, 1.0], [True, False]).score
        0.5
    """
    p, y = np.asarray(probabilities, float), np.asarray(is_yes, float)
    rows = np.zeros((len(p), 2 * BINS + 1))
    places = _bin_of(p)
    rows[np.arange(len(p)), places] = p
    rows[np.arange(len(p)), BINS + places] = y
    rows[:, -1] = 1

    def value(sums: Array) -> Array:
        return divide(np.abs(sums[..., :BINS] - sums[..., BINS : 2 * BINS]).sum(axis=-1), sums[..., -1])

    return Measurement("calibration error", rows, value, f"ECE of the probability of yes|{BINS} equal bins", used=len(p))


def brier(probabilities: Sequence[float], is_yes: Sequence[bool]) -> Measurement:
    """The mean squared distance of the probability of yes from what is so: 0 is best, 0.25 what always saying 50 % gets.

    Example:
        >>> brier([0.5, 0.5], [True, False]).score
        0.25
    """
    squares = (np.asarray(probabilities, float) - np.asarray(is_yes, float)) ** 2
    return mean_of("Brier score", squares, "mean of (probability of yes − is yes)²")


def reliability(probabilities: Sequence[float], is_yes: Sequence[bool]) -> list[Bin]:
    """The bins of the reliability diagram that have answers, from low to high.

    Example:
        >>> [(bin.n, bin.share) for bin in reliability([0.05, 0.95, 0.99], [False, True, False])]
        [(1, 0.0), (2, 0.5)]
    """
    p, y = np.asarray(probabilities, float), np.asarray(is_yes, float)
    places, bins = _bin_of(p), []
    for place in range(BINS):
        inside = places == place
        if n := int(inside.sum()):
            yes = int(y[inside].sum())
            bins.append(Bin(place / BINS, (place + 1) / BINS, n, float(p[inside].mean()), yes / n, wilson(yes, n)))
    return bins
