"""A training loop with a progress bar that resumes from the last saved state."""

import math
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Generic, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

SAVE_EVERY = 200
M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Exponential moving average of a module's weights, which generalises better than the weights of the last step."""

    def __init__(self, module: M, decay: float):
        self.module, self.decay = deepcopy(module), decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for mean, now in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


def train(
    name: str,
    module: M,
    loss_of_step: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
    warm_up: int = 200,
    weight_decay: float = 0.05,
    average: float = 0.998,
) -> M:
    """Train the parameters of `module` that require gradients with AdamW and a cosine schedule; return the averaged module.

    The state is saved as `folder/name.pt` every `SAVE_EVERY` steps; a later call resumes from it.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    ema = EMA(module, average)
    state_file, first, smooth = folder / f"{name}.pt", 0, float("nan")
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    columns = (
        TextColumn(f"{name} {{task.fields[loss]}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    module.train()
    with Progress(*columns, refresh_per_second=1) as progress:
        bar = progress.add_task(name, total=steps, completed=first, loss="")
        for step in range(first, steps):
            torch.manual_seed(step)
            rate = min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate
            loss = loss_of_step(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            ema.update(module, step)
            smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
            progress.update(bar, advance=1, loss=f"loss {smooth:.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                state = {
                    "module": module.state_dict(),
                    "ema": ema.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                }
                torch.save(state, state_file.with_suffix(".part"))
                os.replace(state_file.with_suffix(".part"), state_file)
    return ema.module.eval()
