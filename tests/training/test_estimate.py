"""What a training would do, told before a weight is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_recipes import recipe_for

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.training import estimate
from radfm.training.parts import in_decoder_layer, set_trainable_parts
from radfm.training.recipe import Recipe


def plan_lines(recipe: Recipe) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in estimate.describe_training(recipe))


@pytest.fixture(scope="session")
def large_base(base, tmp_path_factory) -> Path:
    """The files of `base` but the weights, with a decoder of some 0.6 billion parameters in its config."""
    folder = tmp_path_factory.mktemp("large")
    shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"hidden_size": 2304, "intermediate_size": 4096, "num_hidden_layers": 12, "head_dim": 384}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("bytes_of_frozen", [4, 2, 0.5], ids=["float32", "bf16", "4 bits"])
def test_the_memory_of_a_plan_is_that_of_the_weights(large_base, data, tmp_path, monkeypatch, bytes_of_frozen):
    """Below adapters the matrices of the decoder's layers are stored in 4 bits or bfloat16, everything else in float32."""
    options = {4: [], 2: ["training.bf16=true"], 0.5: ["bits=4"]}[bytes_of_frozen]
    recipe = recipe_for(large_base, data, tmp_path, *options)
    monkeypatch.setattr(estimate, "MATMUL_SECONDS", 0.01)
    lines = plan_lines(recipe)
    with torch.device("meta"):
        model = RadFMForConditionalGeneration(RadFMConfig.from_pretrained(large_base))
        model = set_trainable_parts(model, recipe).get_base_model()
    sizes = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    frozen = sum(size for name, size in sizes.items() if in_decoder_layer(name) and name.endswith("_proj.base_layer.weight"))
    # PEFT keeps a frozen copy of the projector beside the one that is trained.
    others = sum(size for name, size in sizes.items() if "projector.original_module" not in name) - frozen
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lines["parameters"].endswith(f" M, {trained / 1e6:.1f} M of them trained")
    assert lines["memory"].startswith(f"{(frozen * bytes_of_frozen + others * 4 + trained * 16) / 1e9:.2f} GB for weights")


def test_a_plan_counts_rows_scans_patches_and_steps(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "MATMUL_SECONDS", 0.01)
    lines = plan_lines(
        recipe_for(base, data, tmp_path, "training.num_train_epochs=3", "training.per_device_train_batch_size=3")
    )
    assert lines["data"].startswith("7 rows, 7 scans; an epoch has ")
    assert lines["steps"].startswith("9 (3 an epoch, ")
