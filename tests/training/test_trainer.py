"""Training as a whole, on a small model and real scans: exact loss, exact resume, frozen parts, adapters, stops in words."""

import json

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import nn
from training_recipes import FULL, recipe_for, weights_of
from transformers import AutoModelForImageTextToText, AutoProcessor

from radfm.cli.chat import load_model
from radfm.cli.common import find_model
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.training import run
from radfm.training.collator import Collator
from radfm.training.data import load_rows
from radfm.training.examples import ExampleDataset
from radfm.training.faults import TrainingError
from radfm.training.parts import part_of, set_trainable_parts, store_frozen_decoder_in_bfloat16
from radfm.training.recipe import Loss, RecipeError, load_recipe
from radfm.training.run import make_arguments, make_plan, resolve_base, train
from radfm.training.trainer import RadFMTrainer

pytestmark = pytest.mark.slow  # trains small models


def test_the_loss_falls_and_the_model_answers_about_what_it_was_trained_on(base, data, tmp_path):
    name, parts = FULL
    recipe = recipe_for(
        base, data, tmp_path / "out", *parts, "training.max_steps=60", "training.learning_rate=2e-3",
        "training.warmup_steps=5", "augmentation.enabled=false", name=name,
    )  # fmt: skip
    out = train(recipe)
    losses = [e["loss"] for e in json.loads((out / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert float(losses[-1]) < 0.3 * float(losses[0])
    model = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    rows = ExampleDataset(load_rows(str(data), "train"), processor, Loss(), None, 0)
    right = 0
    for example in (rows[i] for i in range(len(rows))):
        start = next(i for i, label in enumerate(example.labels) if label >= 0)
        output_ids = model.generate(
            input_ids=torch.tensor([example.input_ids[:start]]),
            pixel_values=example.pixel_values,
            max_new_tokens=8,
            do_sample=False,
        )
        answer = processor.decode(output_ids[0, start:], skip_special_tokens=True)
        right += answer == processor.decode([label for label in example.labels if label >= 0], skip_special_tokens=True)
    assert right >= len(rows) - 1
    assert "| csv |" in (out / "README.md").read_text() and str(tmp_path) not in (out / "README.md").read_text()


@pytest.mark.parametrize(("rows_a_batch", "accumulation"), [(9, 1), (3, 3), (1, 9)])
def test_accumulated_batches_give_the_update_of_one_batch(base, data, tmp_path, rows_a_batch, accumulation):
    """Σ w·nll / Σ w over all micro-batches of a step, whatever they are split into."""

    def update(out, rows, steps):
        name, parts = FULL
        recipe = recipe_for(
            base, data, out, *parts, "training.max_steps=1", "training.optim=sgd", "training.learning_rate=1.0",
            "training.max_grad_norm=0", "training.lr_scheduler_type=constant", "training.warmup_steps=0",
            "augmentation.enabled=false", f"training.per_device_train_batch_size={rows}",
            f"training.gradient_accumulation_steps={steps}", "training.num_train_epochs=1", name=name,
        )  # fmt: skip
        before, after = weights_of(base), weights_of(train(recipe))
        return {key: after[key] - before[key] for key in before}

    whole, split = update(tmp_path / "whole", 16, 1), update(tmp_path / "split", rows_a_batch, accumulation)
    norm = torch.sqrt(sum(change.square().sum() for change in whole.values()))
    error = torch.sqrt(sum((whole[key] - split[key]).square().sum() for key in whole))
    assert norm > 0 and error / norm < 1e-5


def test_a_resumed_training_ends_with_the_same_weights(base, data, tmp_path):
    """Stopped in the second epoch, with random augmentation and dropout of the adapters."""

    def run(out, *more):
        return train(
            recipe_for(
                base,
                data,
                out,
                "training.num_train_epochs=2",
                "training.per_device_train_batch_size=2",
                "training.save_strategy=steps",
                "training.save_steps=1",
                "training.save_total_limit=20",
                *more,
            )
        )

    whole = run(tmp_path / "whole")
    steps = sorted(int(folder.name.split("-")[1]) for folder in whole.glob("checkpoint-*"))
    adapters = {}
    for stop in (steps[1], steps[-2]):
        out = tmp_path / f"stopped-{stop}"
        out.mkdir()
        (out / "recipe.yaml").write_text((whole / "recipe.yaml").read_text().replace(str(whole), str(out)))
        (out / f"checkpoint-{stop}").symlink_to(whole / f"checkpoint-{stop}")
        adapters[stop] = (run(out) / "adapter_model.safetensors").read_bytes()
    assert set(adapters.values()) == {(whole / "adapter_model.safetensors").read_bytes()}


def test_adapters_begin_with_numbers_of_the_seed(base, data, tmp_path):
    adapters = []
    for number in range(2):
        torch.manual_seed(number)  # what was drawn before does not count
        out = train(recipe_for(base, data, tmp_path / str(number), "training.max_steps=1"))
        adapters.append((out / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


def test_lora_trains_adapters_and_the_projector_alone(base, data, tmp_path):
    recipe = recipe_for(base, data, tmp_path)
    model = set_trainable_parts(RadFMForConditionalGeneration.from_pretrained(base), recipe)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or "projector.modules_to_save" in name for name in trained)
    assert {part_of(name.removeprefix("base_model.model.")) for name in trained} == {
        "decoder", "vision_tower", "perceiver", "projector",
    }  # fmt: skip


def test_a_frozen_decoder_in_bfloat16_changes_no_adapter(base, data, tmp_path, monkeypatch):
    """Autocast multiplies in bfloat16 anyway; what is trained, and what is not a product, keeps float32."""
    options = ("training.bf16=true", "training.max_steps=3", "training.learning_rate=2e-3")
    narrow = train(recipe_for(base, data, tmp_path / "narrow", *options))
    stored = []
    monkeypatch.setattr(run, "store_frozen_decoder_in_bfloat16", stored.append)
    wide = train(recipe_for(base, data, tmp_path / "wide", *options))
    assert (narrow / "adapter_model.safetensors").read_bytes() == (wide / "adapter_model.safetensors").read_bytes()
    model = stored[0]
    store_frozen_decoder_in_bfloat16(model)
    halved = {name.replace(".base_layer", "") for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    layers = "base_model.model.model.language_model.layers."
    assert halved and all(name.startswith(layers) and name.endswith("_proj.weight") for name in halved)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_an_adapter_loads_through_the_auto_classes(base, data, tmp_path):
    out = train(recipe_for(base, data, tmp_path / "out", "training.max_steps=2"))
    model = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
    assert sum("lora_" in name for name, _ in model.named_parameters()) > 0
    chat_model = load_model(find_model(str(out)), "cpu", None)  # as `radfm ask --model` does
    assert sum("lora_" in name for name, _ in chat_model.named_parameters()) > 0
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    assert "pixel_values" in processor(images=np.zeros((32, 32)), text="<image>What?", return_tensors="pt")
    assert json.loads((out / "adapter_config.json").read_text())["auto_mapping"] is None


def test_a_frozen_part_has_no_dropout(base, data, tmp_path):
    recipe = recipe_for(base, data, tmp_path, name="projector-only")
    model = set_trainable_parts(RadFMForConditionalGeneration.from_pretrained(base), recipe)
    modes = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    processor = RadFMProcessor.from_pretrained(base)
    rows = load_rows(str(data), "train")
    args = make_arguments(recipe.model_copy(update={"training": {**recipe.training, "max_steps": 1}}))
    trainer = RadFMTrainer(
        model=model, args=args, plan=make_plan(recipe, args, rows, processor, model.config),
        train_dataset=ExampleDataset(rows, processor, recipe.loss, None, 0), data_collator=Collator(processor, model.config),
    )  # fmt: skip
    trainer.train()
    assert modes and not any(modes)


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_the_records(base, data, tmp_path):
    broken = tmp_path / "broken"
    model = RadFMForConditionalGeneration.from_pretrained(base)
    nn.init.constant_(model.model.projector.weight, float("nan"))
    model.save_pretrained(broken)
    RadFMProcessor.from_pretrained(base).save_pretrained(broken)
    with pytest.raises(TrainingError, match=r"The loss of step 1 is nan on records csv/"):
        train(recipe_for(broken, data, tmp_path / "out", "training.max_steps=2"))


def test_a_folder_of_another_training_is_refused(base, data, tmp_path):
    train(recipe_for(base, data, tmp_path, "training.max_steps=1"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        train(recipe_for(base, data, tmp_path, "training.max_steps=2"))


def test_a_recipe_without_a_model_starts_from_the_demo_checkpoint(tmp_path):
    assert resolve_base(load_recipe("finetune-lora")).model == str(ROOT.resolve())
    with pytest.raises(RecipeError, match="model=nowhere: is neither a folder nor a Hub id"):
        resolve_base(load_recipe("finetune-lora", ["model=nowhere"]))
    with pytest.raises(RecipeError, match=r"holds no model \(no config\.json\)"):
        resolve_base(load_recipe("finetune-lora", [f"model={tmp_path}"]))


def test_a_batch_without_scans_gets_a_black_scan_without_a_loss(base):
    processor = RadFMProcessor.from_pretrained(base)
    model = RadFMForConditionalGeneration.from_pretrained(base)
    batch = Collator(processor, model.config)([])
    assert len(batch["pixel_values"]) == 1 and batch["loss_weights"].sum() == 0
    batch.pop("record_ids")
    loss = model(**batch, loss_weight_sum=torch.tensor(5.0)).loss
    loss.backward()
    assert float(loss) == 0
    assert model.model.vision_tower.patch_embedding.projection.weight.grad is not None
