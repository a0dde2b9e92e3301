"""Train a recipe: data, plan of batches, model, Trainer, and a folder that `from_pretrained` loads."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download
from peft import PeftModel
from transformers import BitsAndBytesConfig, EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from .batches import BatchPlan
from .card import clean_adapter_config, write_card
from .collator import Collator, black_pixels
from .data import load_rows
from .examples import ExampleDataset, row_cost
from .faults import explain_faults
from .mixture import draws_per_epoch
from .parts import set_trainable_parts, store_frozen_decoder_in_bfloat16
from .patch_cache import PatchCache, encode_scans, take_cached_patches
from .recipe import Recipe, RecipeError
from .stream import Shards, StreamedBatches, load_places, stream_file
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


def pin_revision(recipe: Recipe) -> Recipe:
    """The recipe with the commit that its revision names now, for the adapters and the card; without one for a folder."""
    if Path(recipe.model).is_dir():
        return recipe.model_copy(update={"revision": None})
    file = hf_hub_download(recipe.model, CONFIG_NAME, revision=recipe.revision)
    return recipe.model_copy(update={"revision": Path(file).parent.name})  # …/snapshots/COMMIT/config.json


def make_arguments(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments of a recipe.

    Raises:
        RecipeError: values that TrainingArguments refuses together.
    """
    defaults = dict(DEFAULTS)
    if recipe.parts.decoder_frozen_epochs:
        # DDP must not wait for the gradients of the frozen decoder, which it counted when it was trained.
        defaults["ddp_find_unused_parameters"] = True
    try:
        return TrainingArguments(**{**defaults, **recipe.training, **FIXED, "ignore_data_skip": recipe.streaming})
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
    with explain_faults(out):
        _train(recipe, args, out)
    return out


def _train(recipe: Recipe, args: TrainingArguments, out: Path) -> None:
    with args.main_process_first(desc="writing the recipe"):
        keep_recipe(recipe, out, write=args.process_index == 0)
    config, processor = load_base(recipe)
    recipe = pin_revision(recipe)
    collator = Collator(processor, config)
    checkpoint = find_checkpoint(out)
    train_dataset: StreamedBatches | ExampleDataset
    if recipe.streaming:
        plan, (train_dataset, licences) = None, make_stream(recipe, args, processor, collator)
        if checkpoint is not None:
            train_dataset.resume(*load_places(checkpoint / stream_file(args.process_index)))
    else:
        rows = load_rows(recipe.data, "train")
        plan = make_plan(recipe, args, rows, processor, config)
        train_dataset = ExampleDataset(rows, processor, recipe.loss, recipe.augmentation, args.seed)
        licences = Counter(zip(rows["source"], rows["licence"], rows["access"], strict=True))
    evaluation = None
    if args.eval_strategy != "no":
        evaluation = ExampleDataset(load_rows(recipe.data, "validation"), processor, recipe.loss, None, args.seed)

    set_seed(args.seed)  # Trainer's comes too late for new adapters, and ranks must begin with the same
    base = load_model(recipe)
    if recipe.patch_cache:
        assert isinstance(train_dataset, ExampleDataset)
        use_patch_cache(recipe, args, base, collator, [train_dataset, *([evaluation] if evaluation else [])])
    model = set_trainable_parts(base, recipe)
    if args.bf16 and isinstance(model, PeftModel):  # without adapters these weights are saved, and keep their precision
        store_frozen_decoder_in_bfloat16(model)
    trainer = RadFMTrainer(
        model=model,
        args=args,
        plan=plan,
        train_dataset=train_dataset,
        eval_dataset=evaluation,
        data_collator=collator,
        processing_class=processor,
        callbacks=make_callbacks(recipe, args),
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        clean_adapter_config(out)
        write_card(recipe, licences, trainer.state, out)
    trainer.accelerator.wait_for_everyone()  # a rank that leaves earlier closes the connections of the others


def make_stream(
    recipe: Recipe, args: TrainingArguments, processor: RadFMProcessor, collator: Collator
) -> tuple[StreamedBatches, Counter[tuple[str, str, str]]]:
    """The micro-batches of this rank from a stream, and the licences of its rows."""
    shards = Shards(recipe.data, "train")
    stream = StreamedBatches(
        shards,
        ExampleDataset([], processor, recipe.loss, recipe.augmentation, args.seed),
        collator,
        recipe.batches,
        max_rows=args.per_device_train_batch_size,
        rank=args.process_index,
        ranks=args.world_size,
        workers=args.dataloader_num_workers,
        seed=args.seed,
    )
    return stream, shards.licences()


def use_patch_cache(
    recipe: Recipe,
    args: TrainingArguments,
    model: RadFMForConditionalGeneration,
    collator: Collator,
    datasets: Sequence[ExampleDataset],
) -> None:
    """Encode the scans that the cache lacks, each rank a share of them, and let model and data sets take its patches."""
    tower = model.model.vision_tower
    cache = PatchCache(Path(recipe.patch_cache), tower, collator.processor)
    share = {"rank": args.process_index, "ranks": args.world_size}
    for dataset in datasets:
        encode_scans(tower, dataset, cache, **share, workers=args.dataloader_num_workers, device=args.device)
    with torch.no_grad():
        collator.black_scan = tower.encode_patches([black_pixels(collator.config)])[0].float().cpu()
    with args.main_process_first(desc="encoding scans"):  # a barrier: ranks read what others encoded
        pass
    for dataset in datasets:
        dataset.patch_cache = cache
    take_cached_patches(tower)


def make_callbacks(recipe: Recipe, args: TrainingArguments) -> list[TrainerCallback]:
    """What the recipe asks of Trainer beside the steps."""
    callbacks: list[TrainerCallback] = []
    if recipe.parts.decoder_frozen_epochs:
        share = recipe.parts.decoder_frozen_epochs / args.num_train_epochs
        callbacks.append(FreezeDecoder(share if recipe.streaming else None, recipe.parts.decoder_frozen_epochs))
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    return callbacks


def find_checkpoint(out: Path) -> Path | None:
    """The last whole checkpoint: Trainer writes its state at the end, so a folder without it was interrupted."""
    whole = [folder for folder in out.glob("checkpoint-*") if (folder / TRAINER_STATE_NAME).exists()]
    return max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def keep_recipe(recipe: Recipe, out: Path, write: bool) -> None:
    """Write the recipe into the folder, on one rank alone; refuse a folder in which another recipe was begun."""
    text = yaml.safe_dump(recipe.model_dump(), sort_keys=False)
    file = out / RECIPE_FILE
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise RecipeError(
            f"{out}: holds a training by another recipe ({file.name} differs); choose another training.output_dir."
        )
    if write:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
