"""A stage of the demo training on transformers' Trainer: its batches are functions of (seed, step)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..faults import TrainingError
from ..recipe import Stage
from .scans import DemoScan

# One item of the data set is the batch of a step, in the order of the steps.
FIXED: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "train_sampling_strategy": "sequential",
    "num_train_epochs": 1,
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "dataloader_pin_memory": False,
}


class Steps(Dataset[dict[str, Any]]):
    """The batches of all steps: `make_batch(step, rng)`."""

    def __init__(self, count: int, seed: int, make_batch: Callable[[int, np.random.Generator], dict[str, Any]]):
        self.count, self.seed, self.make_batch = count, seed, make_batch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.make_batch(step, np.random.default_rng([self.seed, step]))


class StageTrainer(Trainer):
    """Stops before an update from a loss that is not finite."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(f"The loss of step {self.state.global_step + 1} is {float(loss)}: lower the learning rate.")
        return loss


def train_stage(
    module: nn.Module,
    stage: Stage,
    out: Path,
    make_batch: Callable[[int, np.random.Generator], dict[str, Any]],
) -> None:
    """Train a module whose forward takes a batch and returns {"loss": …}. Interrupted, the same call goes on."""
    args = TrainingArguments(**{**stage.training, **FIXED, "output_dir": str(out)})
    trainer = StageTrainer(
        model=module,
        args=args,
        train_dataset=Steps(args.max_steps, args.seed, make_batch),
        data_collator=lambda items: items[0],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.exists() else None)


def draw_scans(scans: list[DemoScan], counts: dict[str, int]) -> Callable[[np.random.Generator], list[int]]:
    """A function that draws the indices of a step's scans: so many of each kind."""
    kinds = {kind: [i for i, scan in enumerate(scans) if scan.kind == kind] for kind in counts}

    def draw(rng: np.random.Generator) -> list[int]:
        return [
            kinds[kind][i] for kind, count in counts.items() for i in rng.integers(len(kinds[kind]), size=count).tolist()
        ]

    return draw


def fall(step: int, steps: int, start: float, low: float) -> float:
    """1 up to `start` (a share of the steps), then along half a cosine to `low` at the end."""
    share = max(step / steps - start, 0) / (1 - start)
    return low + (1 - low) * (1 + math.cos(math.pi * share)) / 2
