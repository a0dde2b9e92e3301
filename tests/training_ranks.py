"""Trainings on two processes (gloo), started by torchrun as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers import ROOT

from radfm.training.recipe import Recipe

WORKER = ROOT / "tests" / "training" / "rank_worker.py"
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def arguments_of(recipe: Recipe, file: Path) -> list[str]:
    """A recipe as the arguments of `-m radfm.training`; `file` is written."""
    file.write_text(json.dumps(recipe.model_dump()))  # JSON is YAML
    return [str(file)]


def torchrun(*command: object, **environment: str) -> dict[str, Any]:
    """The arguments of `subprocess.run` for `torchrun COMMAND` on two ranks."""
    return {
        "args": [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *map(str, command),
        ],
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        "cwd": ROOT.parent,
    }


def start(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `torchrun COMMAND` on two ranks to its end."""
    return subprocess.run(**torchrun(*command, **environment), capture_output=True, text=True, timeout=1800)


def train_on_two_ranks(recipes: list[Recipe], folder: Path, *options: str, **environment: str) -> None:
    """Train recipes one after the other on two ranks; `options` of rank_worker.py."""
    trainings = folder / "trainings.json"
    trainings.write_text(json.dumps([arguments_of(recipe, folder / f"{i}.yaml") for i, recipe in enumerate(recipes)]))
    run = start(WORKER, *options, trainings, **environment)
    assert run.returncode == 0, run.stderr[-3000:]
