"""A recipe is checked before anything is loaded, and every fault names the key and the nearest right one."""

import pytest

from radfm.training.recipe import RecipeError, load_recipe, recipe_names


def test_every_recipe_that_ships_is_valid():
    assert set(recipe_names()) >= {"pretrain-medmd", "finetune-radmd", "finetune-lora", "finetune-qlora", "projector-only"}
    for name in recipe_names():
        load_recipe(name)


def test_an_override_keeps_the_other_keys_of_its_block():
    recipe = load_recipe("finetune-lora", ["training.learning_rate=2e-3", "lora.r=4"])
    assert recipe.training["learning_rate"] == 2e-3 and recipe.training["num_train_epochs"] == 5
    assert recipe.lora.r == 4 and recipe.lora.alpha == 32


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "training.learning_rat=1e-4",
            "training.learning_rat: is no field of TrainingArguments. Did you mean learning_rate?",
        ),
        ("part.decoder=full", "part: is no key of a recipe. Did you mean parts?"),
        ("lora.rank=3", "lora.rank: is no key of a recipe. There are r, alpha, dropout."),
        ("parts.decoder=half", "parts.decoder='half': input should be 'full', 'lora' or 'frozen'."),
        ("training.learning_rate=fast", "training.learning_rate='fast': input should be a valid number"),
        ("training.bf16=maybe", "training.bf16='maybe': input should be a valid boolean"),
        ("training.use_liger_kernel=true", "training.use_liger_kernel=True: Liger's kernels"),
        ("training.label_smoothing_factor=0.1", "training.label_smoothing_factor=0.1: label smoothing"),
        ("training.deepspeed={zero_optimization: {stage: 3}}", "training.deepspeed: ZeRO-3 hangs"),
        ("parts.vision_tower=full", "parts.vision_tower=full: beside adapters"),
        ("learning_rate", "learning_rate: an override is written key=value"),
        ("batches.max_patches=0", "batches.max_patches=0: input should be greater than 0."),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(override, sentence):
    with pytest.raises(RecipeError) as error:
        load_recipe("finetune-lora", [override])
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_fsdp_is_turned_on_as_transformers_documents_it():
    recipe = load_recipe("pretrain-medmd", ["training.fsdp=true", "training.fsdp_config={state_dict_type: FULL_STATE_DICT}"])
    assert recipe.training["fsdp"] is True and recipe.training["fsdp_config"] == {"state_dict_type": "FULL_STATE_DICT"}


def test_parts_that_exclude_each_other_are_refused():
    with pytest.raises(RecipeError, match="a quantised decoder cannot be trained in full"):
        load_recipe("pretrain-medmd", ["bits=4"])
    with pytest.raises(RecipeError, match="only a decoder that is trained in full can start frozen"):
        load_recipe("finetune-lora", ["parts.decoder_frozen_epochs=1"])
    with pytest.raises(RecipeError, match="every part is frozen"):
        load_recipe("projector-only", ["parts.projector=frozen"])


def test_an_unknown_recipe_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="Did you mean finetune-lora"):
        load_recipe("finetune-lore")
    (tmp_path / "mine.yaml").write_text("model: [unclosed")
    with pytest.raises(RecipeError, match=r"mine\.yaml: cannot be read"):
        load_recipe(str(tmp_path / "mine.yaml"))
