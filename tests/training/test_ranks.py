"""Two ranks (gloo) give the update of one: with accumulation, 2D, 3D and text-only rows, and a rank that has texts alone."""

import importlib.util
import json

import pytest
import torch
from training_ranks import FSDP2, arguments_of, start, train_on_two_ranks
from training_recipes import FULL, recipe_for, weights_of

from radfm.processing_radfm import RadFMProcessor
from radfm.training.batches import BatchPlan
from radfm.training.data import load_rows
from radfm.training.examples import row_cost
from radfm.training.run import train

pytestmark = pytest.mark.slow  # starts processes that train small models

EXACT = [
    *("training.max_steps=1", "training.optim=sgd", "training.learning_rate=1.0", "training.max_grad_norm=0"),
    *("training.lr_scheduler_type=constant", "training.warmup_steps=0", "augmentation.enabled=false"),
]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def exact_recipe(base, mixed_data):
    """One SGD step of size 1 over all rows, so that the change of the weights is the gradient."""
    name, parts = FULL

    def make(out, rows=16, accumulation=1, *more):
        batches = [f"training.per_device_train_batch_size={rows}", f"training.gradient_accumulation_steps={accumulation}"]
        return recipe_for(base, mixed_data, out, *parts, *EXACT, *batches, *more, name=name)

    return make


@pytest.fixture(scope="module")
def update_of_one(base, exact_recipe, tmp_path_factory):
    return difference(train(exact_recipe(tmp_path_factory.mktemp("one"))), base)


def difference(trained, base):
    before, after = weights_of(base), weights_of(trained)
    assert before.keys() == after.keys()
    return torch.cat([(after[key] - before[key]).double().flatten() for key in sorted(before)])


def relative_error(update, exact):
    assert exact.norm() > 0
    return float((update - exact).norm() / exact.norm())


def seed_with_texts_alone(base, data, rows, accumulation) -> int:
    """A seed by which, in one micro-batch, one rank has texts without scans and the other rank has scans."""
    stored = load_rows(str(data), "train")
    processor = RadFMProcessor.from_pretrained(base)
    costs = [row_cost(row, processor, patch_size=16) for row in stored]
    bounds = {"max_patches": 8192, "max_tokens": 8192, "max_rows": rows, "ranks": 2, "accumulation": accumulation}
    for seed in range(10_000):
        batches = BatchPlan(costs, ids=[""] * len(costs), epochs=1, seed=seed, **bounds).epoch(0)
        for pair in zip(batches[::2], batches[1::2], strict=True):
            if all(pair) and sum(any(costs[row].patches for row in batch) for batch in pair) == 1:
                return seed
    raise AssertionError("no seed gives a rank texts alone")


def test_ddp_gives_the_update_of_one_rank(base, mixed_data, exact_recipe, update_of_one, tmp_path):
    seed = seed_with_texts_alone(base, mixed_data, 7, 1)
    recipes = [
        exact_recipe(tmp_path / "accumulated", 3, 2),
        exact_recipe(tmp_path / "rows", 1, 7),
        exact_recipe(tmp_path / "text-only", 7, 1, f"training.seed={seed}"),
        exact_recipe(tmp_path / "checkpointing", 7, 1, f"training.seed={seed}", "training.gradient_checkpointing=true"),
    ]
    train_on_two_ranks(recipes, tmp_path)
    for recipe in recipes:
        out = recipe.training["output_dir"]
        assert relative_error(difference(out, base), update_of_one) < TOLERANCE, out


@pytest.mark.parametrize("state", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_fsdp2_gives_the_update_of_one_rank_and_saves_a_whole_model(
    base, mixed_data, exact_recipe, update_of_one, tmp_path, state
):
    seed = seed_with_texts_alone(base, mixed_data, 2, 3)
    configured = ["training.accelerator_config={use_configured_state: true}", f"training.seed={seed}"]
    recipe = exact_recipe(tmp_path / "fsdp2", 2, 3, *configured)
    train_on_two_ranks([recipe], tmp_path, "--fsdp2", **{**FSDP2, "FSDP_STATE_DICT_TYPE": state})
    out = tmp_path / "fsdp2"
    assert relative_error(difference(out, base), update_of_one) < TOLERANCE
    assert {file.name for file in out.glob("*.py")} == {file.name for file in base.glob("*.py")}, "the code of the model"
    saved, config = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    assert (saved["auto_map"], saved["architectures"]) == (config["auto_map"], config["architectures"])


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero2_gives_the_update_of_one_rank(base, exact_recipe, update_of_one, tmp_path):
    config = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True, "gradient_clipping": 0.0}
    config |= dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"), "auto")
    recipe = exact_recipe(tmp_path / "zero2", 3, 2)
    recipe.training["deepspeed"] = config
    # DeepSpeed builds an extension; in the shared folder, the lock of a build that was killed is awaited for ever.
    train_on_two_ranks([recipe], tmp_path, DS_ACCELERATOR="cpu", TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions"))
    assert relative_error(difference(tmp_path / "zero2", base), update_of_one) < TOLERANCE


@pytest.mark.parametrize("fsdp2", [False, True], ids=["ddp", "fsdp2"])
def test_stage_1_trains_the_decoder_from_the_second_epoch_on(base, mixed_data, tmp_path, fsdp2):
    """With DDP by the documented command: it must not wait for gradients of the decoder that is frozen at first."""
    recipe = recipe_for(
        base, mixed_data, tmp_path / "out", "training.bf16=false", "training.dataloader_num_workers=0",
        "training.gradient_accumulation_steps=1", "training.num_train_epochs=2", "training.save_strategy=epoch",
        name="pretrain-medmd",
    )  # fmt: skip
    if fsdp2:
        recipe.training["accelerator_config"] = {"use_configured_state": True}
        train_on_two_ranks([recipe], tmp_path, "--fsdp2", **FSDP2)
    else:
        run = start("-m", "radfm.training", *arguments_of(recipe, tmp_path / "recipe.yaml"))
        assert run.returncode == 0, run.stderr[-3000:]
    before, first, last = (weights_of(folder) for folder in (base, tmp_path / "out" / "checkpoint-1", tmp_path / "out"))
    layers = [key for key in before if "language_model" in key and key.endswith("q_proj.weight")]
    assert layers and all(torch.equal(before[key], first[key]) for key in layers)
    assert not any(torch.equal(before[key], last[key]) for key in layers)


def resume_at_every_step(base, data, folder, run, *more):
    """Two epochs with a checkpoint a step, then the same training from each checkpoint; the steps whose end differs."""
    settings = [
        "training.num_train_epochs=2", "training.per_device_train_batch_size=2", "training.save_strategy=steps",
        "training.save_steps=1", "training.save_total_limit=20", *more,
    ]  # fmt: skip
    whole = recipe_for(base, data, folder / "whole", *settings)
    run([whole])
    steps = sorted(int(path.name.split("-")[1]) for path in (folder / "whole").glob("checkpoint-*"))
    resumed = {}
    for step in steps[:-1]:
        resumed[step] = recipe_for(base, data, folder / str(step), *settings)
        (folder / str(step)).mkdir()
        (folder / str(step) / f"checkpoint-{step}").symlink_to(folder / "whole" / f"checkpoint-{step}")
    run(list(resumed.values()))
    end = (folder / "whole" / "adapter_model.safetensors").read_bytes()
    assert len(json.loads((folder / "whole" / "trainer_state.json").read_text())["log_history"]) > 0
    return steps, [step for step in resumed if (folder / str(step) / "adapter_model.safetensors").read_bytes() != end]


@pytest.mark.long  # a dozen trainings
def test_one_rank_resumes_to_the_same_bits_from_every_step_of_two_epochs(base, mixed_data, tmp_path):
    steps, different = resume_at_every_step(base, mixed_data, tmp_path, lambda recipes: [train(r) for r in recipes])
    assert len(steps) >= 12 and different == []


@pytest.mark.long  # six trainings on two ranks
def test_two_ranks_resume_to_the_same_bits_from_every_step_of_two_epochs(base, mixed_data, tmp_path):
    steps, different = resume_at_every_step(
        base,
        mixed_data,
        tmp_path,
        lambda recipes: train_on_two_ranks(recipes, tmp_path),
        "training.dataloader_num_workers=1",
    )
    assert len(steps) >= 6 and different == []
