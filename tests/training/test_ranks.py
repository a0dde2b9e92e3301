"""Two processes (gloo) give the update of one, also where a rank has no rows in a step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from training_recipes import FULL, recipe_for, weights_of

from radfm.training.run import train

pytestmark = pytest.mark.slow


def run_on_two_ranks(recipe, out: Path) -> Path:
    """Train with torchrun, as the documentation has it."""
    arguments = [
        f"model={recipe.model}",
        f"data={recipe.data}",
        *(f"parts.{k}={v}" for k, v in recipe.parts.model_dump().items()),
    ]
    arguments += ["augmentation.enabled=false"]
    arguments += [f"training.{key}={value}" for key, value in {**recipe.training, "output_dir": out}.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*torchrun, "-m", "radfm.training", "projector-only", *arguments, "training.ddp_backend=gloo"],
        capture_output=True, text=True, env=environment, cwd=ROOT.parent, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return out


@pytest.mark.parametrize(("rows", "accumulation"), [(3, 2), (2, 4)])
def test_two_ranks_give_the_update_of_one(base, data, tmp_path, rows, accumulation):
    name, parts = FULL
    exact = ["training.max_steps=1", "training.optim=sgd", "training.learning_rate=1.0", "training.max_grad_norm=0"]
    exact += ["training.lr_scheduler_type=constant", "training.warmup_steps=0", "augmentation.enabled=false"]

    def recipe(out, rows, accumulation):
        batches = [f"training.per_device_train_batch_size={rows}", f"training.gradient_accumulation_steps={accumulation}"]
        return recipe_for(base, data, out, *parts, *exact, *batches, name=name)

    before = weights_of(base)
    one = weights_of(train(recipe(tmp_path / "one", 16, 1)))
    two = weights_of(run_on_two_ranks(recipe(tmp_path / "two", rows, accumulation), tmp_path / "two"))
    norm = torch.sqrt(sum((one[key] - before[key]).square().sum() for key in before))
    error = torch.sqrt(sum((one[key] - two[key]).square().sum() for key in before))
    assert norm > 0 and error / norm < 1e-5
