"""The patches of a frozen tower come from disk: the same update, no scan read and nothing encoded a second time."""

import pytest
import torch
from training_ranks import train_on_two_ranks
from training_recipes import recipe_for, weights_of

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.training.patch_cache import tower_fingerprint
from radfm.training.recipe import RecipeError, load_recipe
from radfm.training.run import train

FROZEN = [
    *("parts.perceiver=full", "augmentation.enabled=false", "training.num_train_epochs=2", "training.learning_rate=1e-3"),
    *("training.per_device_train_batch_size=3", "training.optim=sgd", "training.eval_strategy=epoch"),
]


def recipe(base, data, out, *more):
    return recipe_for(base, data, out, *FROZEN, *more, name="projector-only")


def difference(trained, base):
    before, after = weights_of(base), weights_of(trained)
    return torch.cat([(after[key] - before[key]).double().flatten() for key in sorted(before)])


@pytest.mark.slow  # trains small models
def test_cached_patches_give_the_same_training_on_one_rank_and_two(base, mixed_data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    plain = difference(train(recipe(base, mixed_data, tmp_path / "plain")), base)
    cached = difference(train(recipe(base, mixed_data, tmp_path / "cached", f"patch_cache={cache}")), base)
    assert plain.norm() > 0 and (plain - cached).norm() / plain.norm() < 1e-5
    written = {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")}
    assert len(written) == 7, "one file for each of the scans, of two splits together"

    def read(*_):
        raise AssertionError("a scan was read, though its patches are cached")

    with monkeypatch.context() as patched:
        patched.setattr("radfm.training.examples.load_scan", read)
        again = train(recipe(base, mixed_data, tmp_path / "again", f"patch_cache={cache}"))
    assert torch.equal(difference(again, base), cached)
    train_on_two_ranks([recipe(base, mixed_data, tmp_path / "two", f"patch_cache={cache}")], tmp_path)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")} == written


def test_another_tower_or_another_window_has_another_cache(base):
    model, processor = RadFMForConditionalGeneration.from_pretrained(base), RadFMProcessor.from_pretrained(base)
    tower = model.model.vision_tower
    first = tower_fingerprint(tower, processor)
    with torch.no_grad():
        tower.perceiver.latents += 1
    assert tower_fingerprint(tower, processor) == first, "the Perceiver comes after the patches"
    with torch.no_grad():
        tower.layers[0].mlp.up.weight[0, 0] += 1
    assert tower_fingerprint(tower, processor) != first
    model = RadFMForConditionalGeneration.from_pretrained(base)
    processor.image_processor.ct_window = "lung"
    assert tower_fingerprint(model.model.vision_tower, processor) != first


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("parts.vision_tower=full", "parts.vision_tower=frozen"),
        ("augmentation.enabled=true", "augmentation.enabled=false"),
        ("streaming=true", "streaming=false"),
    ],
)
def test_what_changes_patches_is_refused(setting, remedy):
    fixed = ["patch_cache=cache", "augmentation.enabled=false", "training.max_steps=1"]
    with pytest.raises(RecipeError, match=f"patch_cache: .* only with {remedy}"):
        load_recipe("projector-only", [*fixed, setting])
