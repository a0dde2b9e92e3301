"""The plan of micro-batches: bounded by patches, tokens and rows; the same number for every rank and in every epoch.

Samplers of transformers and accelerate double or drop rows when batches differ in size, deal unequal numbers of batches
to ranks, or repeat the order of epoch 0 after a resume. Here one plan is made for all ranks from (seed, epoch) alone, its
length is fixed in advance by splitting the costliest batches, and each rank takes its share.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .recipe import RecipeError


@dataclass(frozen=True)
class Cost:
    """What a row costs: patches of its scans, and tokens of its text (image tokens included)."""

    patches: int
    tokens: int


class BatchPlan:
    """Which rows are in which micro-batch, for each epoch.

    Args:
        costs: of each row of the data set.
        ids: record ids, for error messages.
        max_patches, max_tokens, max_rows: bounds of a micro-batch. Tokens count as padded: rows · longest row.
        ranks, accumulation: an epoch has a multiple of `ranks · accumulation` micro-batches: no update is partial.
        epochs: for how many epochs the number of micro-batches must be enough.
        seed: of the order of the rows.
        draws: how often each row is drawn in an epoch on average; 1 for each where it is left out (`mixture.py`).

    Raises:
        RecipeError: a single row exceeds a bound.

    Example:
        >>> plan = BatchPlan([Cost(16, 50)] * 10, ids=[str(i) for i in range(10)], max_patches=64, max_tokens=1000,
        ...                  max_rows=8, ranks=2, accumulation=1, epochs=3, seed=0)
        >>> plan.batches_per_rank
        2
        >>> sorted(row for batch in plan.epoch(1) for row in batch) == list(range(10))
        True
    """

    def __init__(
        self,
        costs: Sequence[Cost],
        *,
        ids: Sequence[str],
        max_patches: int,
        max_tokens: int,
        max_rows: int,
        ranks: int,
        accumulation: int,
        epochs: int,
        seed: int,
        draws: np.ndarray | None = None,
    ):
        self._patches = np.array([cost.patches for cost in costs])
        self._tokens = np.array([cost.tokens for cost in costs])
        self._bounds = (max_patches, max_tokens, max_rows)
        self._ranks, self._seed, self._draws = ranks, seed, draws
        self._check_single_rows(ids)
        longest = max(len(self._pack(epoch)) for epoch in range(max(epochs, 1)))
        group = ranks * accumulation
        self.batches_per_rank = -(-longest // group) * group // ranks

    def _check_single_rows(self, ids: Sequence[str]) -> None:
        max_patches, max_tokens, _ = self._bounds
        for costs, bound, key in ((self._patches, max_patches, "max_patches"), (self._tokens, max_tokens, "max_tokens")):
            if (costs > bound).any():
                row = int(np.argmax(costs))
                raise RecipeError(
                    f"batches.{key}={bound}: record {ids[row]} alone has {costs[row]} {key.removeprefix('max_')}; "
                    f"raise batches.{key}, or leave the record out."
                )

    def _rows(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in random order."""
        rng = np.random.default_rng([self._seed, epoch])
        if self._draws is None:
            return rng.permutation(len(self._patches))
        # A row with 2.3 draws comes twice, and a third time with probability 0.3.
        counts = np.floor(self._draws + rng.random(len(self._draws))).astype(int)
        return rng.permutation(np.repeat(np.arange(len(counts)), counts))

    def _pack(self, epoch: int) -> list[list[int]]:
        """Consecutive rows of the epoch's order together, as many as the bounds allow."""
        max_patches, max_tokens, max_rows = self._bounds
        batches: list[list[int]] = []
        patches = longest = 0
        for row in self._rows(epoch).tolist():
            tokens = max(longest, int(self._tokens[row]))
            fits = batches and len(batches[-1]) < max_rows
            if fits and patches + self._patches[row] <= max_patches and (len(batches[-1]) + 1) * tokens <= max_tokens:
                batches[-1].append(row)
                patches, longest = patches + int(self._patches[row]), tokens
            else:
                batches.append([row])
                patches, longest = int(self._patches[row]), int(self._tokens[row])
        return batches

    def epoch(self, epoch: int) -> list[list[int]]:
        """All micro-batches of an epoch, `ranks · batches_per_rank` of them; micro-batch i belongs to rank i % ranks.

        An empty one (fewer rows than micro-batches) stands for a step without a loss on that rank.
        """
        batches, total = self._pack(epoch), self._ranks * self.batches_per_rank
        while len(batches) < total and any(len(batch) > 1 for batch in batches):
            costliest = max((i for i in range(len(batches)) if len(batches[i]) > 1), key=lambda i: self._cost(batches[i]))
            batch = batches[costliest]
            batches[costliest : costliest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        return batches + [[] for _ in range(total - len(batches))]

    def sums(self, epoch: int) -> tuple[int, int]:
        """Patches and tokens of all rows of an epoch."""
        rows = self._rows(epoch)
        return int(self._patches[rows].sum()), int(self._tokens[rows].sum())

    def _cost(self, batch: list[int]) -> float:
        """The share of the bounds that a micro-batch uses up."""
        patches = self._patches[batch].sum() / self._bounds[0]
        return float(patches + len(batch) * self._tokens[batch].max() / self._bounds[1])


class PlanSampler:
    """The micro-batches of one rank, as lists of (epoch, row) pairs; a `batch_sampler` of a DataLoader.

    `current_epoch` is asked at the start of each pass: transformers' `set_epoch` does not reach a sampler after a resume.
    """

    batch_size = 1  # read by accelerate, which refuses None; the plan decides

    def __init__(self, plan: BatchPlan, rank: int, ranks: int, current_epoch: Callable[[], int]):
        self.plan, self.rank, self.ranks, self.current_epoch = plan, rank, ranks, current_epoch

    def __len__(self) -> int:
        return self.plan.batches_per_rank

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.current_epoch()
        for batch in self.plan.epoch(epoch)[self.rank :: self.ranks]:
            yield [(epoch, row) for row in batch]
