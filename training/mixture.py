"""How often the rows of each source and task are drawn."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .recipe import Mixture, RecipeError


def draws_per_epoch(mixture: Mixture, sources: Sequence[str], tasks: Sequence[str]) -> np.ndarray | None:
    """How often each row is drawn in an epoch on average; the sum is the number of rows. None where each row comes once.

    A source of n rows gets the share n^(1 / temperature) (arXiv 1907.05019, section 4.2); `weights` multiply it.

    Raises:
        RecipeError: a weight for a name that is neither a source nor a task of the data.

    Example:
        >>> draws_per_epoch(Mixture(temperature=2.0), ["a"] * 9 + ["b"], ["vqa"] * 10).round(2).tolist()
        [0.83, 0.83, 0.83, 0.83, 0.83, 0.83, 0.83, 0.83, 0.83, 2.5]
    """
    sizes = Counter(sources)
    unknown = sorted(set(mixture.weights) - set(sizes) - set(tasks))
    if unknown:
        raise RecipeError(
            f"mixture.weights.{unknown[0]}: is neither a source nor a task of the data; "
            f"there are {', '.join(sorted({*sizes, *tasks}))}."
        )
    if mixture.temperature == 1 and not mixture.weights:
        return None
    factors = [mixture.weights.get(s, 1.0) * mixture.weights.get(t, 1.0) for s, t in zip(sources, tasks, strict=True)]
    draws = np.array([sizes[s] ** (1 / mixture.temperature - 1) for s in sources]) * factors
    return draws * len(sources) / draws.sum()
