"""Train a recipe: data, plan of batches, model, Trainer, and a folder that `from_pretrained` loads."""

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import BitsAndBytesConfig, EarlyStoppingCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from .batches import BatchPlan
from .card import clean_adapter_config, write_card
from .collator import Collator
from .data import load_rows
from .examples import ExampleDataset, row_cost
from .mixture import draws_per_epoch
from .parts import set_trainable_parts
from .recipe import Recipe, RecipeError
from .trainer import FreezeDecoder, RadFMTrainer

# What Trainer must be told so that a batch reaches the model as the collator made it, and a fault is not hidden.
FIXED = {"remove_unused_columns": False, "logging_nan_inf_filter": False, "label_names": ["labels"]}
DEFAULTS = {"dataloader_pin_memory": torch.cuda.is_available()}
RECIPE_FILE = "recipe.yaml"
PACKAGE = Path(__file__).parents[1]  # with the demo checkpoint


def resolve_base(recipe: Recipe) -> Recipe:
    """The recipe with an absolute path, or a Hub id, of the model to start from; the demo checkpoint where it names none.

    Raises:
        RecipeError: a folder without a model, or a name that is neither a folder nor a Hub id.
    """
    folder = Path(recipe.model) if recipe.model else PACKAGE
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise RecipeError(f"model={recipe.model or folder}: holds no model (no config.json); name a folder or a Hub id.")
        return recipe.model_copy(update={"model": str(folder.resolve())})
    if recipe.model.count("/") != 1:
        raise RecipeError(f"model={recipe.model}: is neither a folder nor a Hub id (owner/name).")
    return recipe


def load_base(recipe: Recipe) -> tuple[RadFMConfig, RadFMProcessor]:
    """Config and processor of the model to start from.

    Raises:
        RecipeError: the Hub has no such model, or cannot be reached.
    """
    revision = recipe.revision or "main"
    try:
        config = RadFMConfig.from_pretrained(recipe.model, revision=revision)
        return config, RadFMProcessor.from_pretrained(recipe.model, revision=revision)
    except OSError as error:
        raise RecipeError(f"model={recipe.model}: cannot be loaded ({str(error).splitlines()[0]})") from error


def make_arguments(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments of a recipe.

    Raises:
        RecipeError: values that TrainingArguments refuses together.
    """
    try:
        return TrainingArguments(**{**DEFAULTS, **recipe.training, **FIXED})
    except (ValueError, ImportError) as error:
        raise RecipeError(f"training: {str(error).splitlines()[0]}") from error


def make_plan(
    recipe: Recipe, args: TrainingArguments, rows: Any, processor: RadFMProcessor, config: RadFMConfig
) -> BatchPlan:
    """The micro-batches of all epochs, from the sizes of the rows; reads no scan."""
    light = rows.select_columns(["id", "messages", "shapes", "source", "task"])
    return BatchPlan(
        [row_cost(row, processor, config.vision_config.patch_size) for row in light],
        ids=light["id"],
        max_patches=recipe.batches.max_patches,
        max_tokens=recipe.batches.max_tokens,
        max_rows=args.per_device_train_batch_size,
        ranks=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        epochs=math.ceil(args.num_train_epochs),
        seed=args.seed,
        draws=draws_per_epoch(recipe.mixture, light["source"], light["task"]),
    )


def load_model(recipe: Recipe) -> RadFMForConditionalGeneration:
    """The model to start from; in 32 bits, or with the decoder in 4 or 8 bits. Mixed precision is Trainer's `bf16`."""
    quantization = None
    if recipe.bits is not None:
        quantization = BitsAndBytesConfig(
            load_in_4bit=recipe.bits == 4,
            load_in_8bit=recipe.bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    return RadFMForConditionalGeneration.from_pretrained(
        recipe.model, revision=recipe.revision or "main", dtype=torch.float32, quantization_config=quantization
    )


def train(recipe: Recipe) -> Path:
    """Train a recipe; the folder with the result.

    Interrupted, the same call goes on from the last checkpoint in `training.output_dir`.

    Raises:
        RecipeError: the recipe does not fit the data, or the folder holds another training.
        DataError: no such data.
        TrainingError: a step that could not be taken, with the ids of the records.
    """
    recipe = resolve_base(recipe)
    args = make_arguments(recipe)
    out = Path(str(args.output_dir))
    _keep_recipe(recipe, out)
    config, processor = load_base(recipe)
    rows = load_rows(recipe.data, "train")
    plan = make_plan(recipe, args, rows, processor, config)
    evaluation = None
    if args.eval_strategy != "no":
        evaluation = ExampleDataset(load_rows(recipe.data, "validation"), processor, recipe.loss, None, args.seed)

    model = set_trainable_parts(load_model(recipe), recipe)
    callbacks: list[Any] = []
    if recipe.parts.decoder_frozen_epochs:
        callbacks.append(FreezeDecoder(recipe.parts.decoder_frozen_epochs))
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = RadFMTrainer(
        model=model,
        args=args,
        plan=plan,
        train_dataset=ExampleDataset(rows, processor, recipe.loss, recipe.augmentation, args.seed),
        eval_dataset=evaluation,
        data_collator=Collator(processor, config),
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)))
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        clean_adapter_config(out)
        write_card(recipe, rows, trainer.state, out)
    return out


def _keep_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder; refuse a folder in which another recipe was begun."""
    text = yaml.safe_dump(recipe.model_dump(), sort_keys=False)
    file = out / RECIPE_FILE
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise RecipeError(
            f"{out}: holds a training by another recipe ({file.name} differs); choose another training.output_dir."
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
