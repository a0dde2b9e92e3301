"""Answers read from the model's log-probabilities of the options: no word is parsed."""

import math
from collections.abc import Mapping


def choose(scores: Mapping[str, float]) -> str | None:
    """The option with the highest log-probability; None where two share it.

    Example:
        >>> choose({"yes": -0.2, "no": -1.7}), choose({"yes": -1.0, "no": -1.0})
        ('yes', None)
    """
    best = max(scores.values())
    options = [option for option, score in scores.items() if score == best]
    return options[0] if len(options) == 1 else None


def probabilities(scores: Mapping[str, float]) -> dict[str, float]:
    """Log-probabilities → probabilities among the options alone (softmax).

    Example:
        >>> {option: round(p, 3) for option, p in probabilities({"yes": 0.0, "no": math.log(3)}).items()}
        {'yes': 0.25, 'no': 0.75}
    """
    best = max(scores.values())
    powers = {option: math.exp(score - best) for option, score in scores.items()}
    total = sum(powers.values())
    return {option: power / total for option, power in powers.items()}
