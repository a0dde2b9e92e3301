"""`hub_id` pushes the result, adapters with the commit of their base; what could not be pushed is refused first."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from offline_hub import OfflineHub
from strangers import environment
from training_recipes import recipe_for

from radfm.training.recipe import RecipeError
from radfm.training.start import check_hub_id


@pytest.mark.slow  # pushes and trains in processes of their own
def test_adapters_are_pushed_with_the_commit_of_their_base(base, data, tmp_path):
    with OfflineHub() as hub:

        def radfm(*arguments: object) -> None:
            run = subprocess.run(
                [sys.executable, "-m", "radfm.cli", *map(str, arguments)],
                cwd=ROOT.parent,
                env=environment(hub, tmp_path / "home", PYTHONPATH=os.environ.get("PYTHONPATH", "")),
                capture_output=True,
                text=True,
            )
            assert run.returncode == 0, run.stderr[-3000:]

        radfm("push", "model", base, "me/base")
        repository = hub.repository("models", "me/base")
        commit = repository.branches["main"]
        settings = ["training.max_steps=1", "training.use_cpu=true", "training.report_to=none"]
        out = tmp_path / "out"
        radfm(
            "train",
            "finetune-lora",
            "model=me/base",
            f"data={data}",
            f"training.output_dir={out}",
            "hub_id=me/lora",
            *settings,
        )
        files = hub.repository("models", "me/lora").files()
    adapter = json.loads(files["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("me/base", commit)
    assert files["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    assert commit in files["README.md"].decode()


def test_adapters_of_a_local_base_are_refused_before_the_training(base, data, tmp_path):
    check_hub_id(recipe_for(base, data, tmp_path, "hub_id=me/whole", name="projector-only"))
    with pytest.raises(RecipeError, match=r"^hub_id=me/lora: adapters need their base model.*radfm push model"):
        check_hub_id(recipe_for(base, data, tmp_path, "hub_id=me/lora"))


def test_a_hub_id_without_an_owner_is_refused_before_the_training(base, data, tmp_path):
    with pytest.raises(RecipeError, match=r"^hub_id=lora: is no Hub id; write OWNER/NAME"):
        check_hub_id(recipe_for(base, data, tmp_path, "hub_id=lora"))
