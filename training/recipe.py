"""A training recipe: YAML with `key=value` overrides, checked before any weight or scan is loaded.

A recipe has blocks of our own (checked by the pydantic models below) and one block `training`, whose keys are the fields
of transformers' `TrainingArguments` with their names and types.

    >>> recipe = load_recipe("finetune-lora", ["data=scans.csv", "training.max_steps=100"])
    >>> recipe.parts.decoder, recipe.training["max_steps"]
    ('lora', 100)
"""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

RECIPES = Path(__file__).parent / "recipes"
# Settings of TrainingArguments that cannot work with RadFM, and what to do instead.
REFUSED: dict[str, str] = {
    "use_liger_kernel": "Liger's kernels replace modules that RadFM lacks; the kernels of RadFM need no setting.",
    "label_smoothing_factor": "label smoothing replaces the weighted loss of RadFM; remove it.",
    "remove_unused_columns": "the collator makes the columns of the model itself; remove it.",
    "train_sampling_strategy": "batches come from batches.max_patches and batches.max_tokens; remove it.",
    "ignore_data_skip": "a resumed training goes on at the next row; remove it.",
    "auto_find_batch_size": "lower batches.max_patches or batches.max_tokens instead.",
}
# Types that TrainingArguments takes beside the one it declares.
ALSO_TAKEN: dict[str, type] = {"fsdp": bool}


class RecipeError(ValueError):
    """A recipe that cannot be trained: one line that names the key and the remedy."""


class Block(BaseModel):
    """A block of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


How = Literal["full", "lora", "frozen"]


class Parts(Block):
    """How each part of the model is trained."""

    decoder: How = Field("full", description="the language model with embeddings and head")
    vision_tower: How = Field("full", description="patch embedding and 3D vision transformer")
    perceiver: How = Field("full", description="the 32 latents and their layers")
    projector: Literal["full", "frozen"] = Field("full", description="the linear layer from vision width to decoder width")
    decoder_frozen_epochs: float = Field(0.0, ge=0, description="epochs at the start in which the decoder is frozen")

    @property
    def has_adapters(self) -> bool:
        """Whether a part is trained by LoRA."""
        return "lora" in (self.decoder, self.vision_tower, self.perceiver)


class Lora(Block):
    """Low-rank adapters (arXiv 2106.09685)."""

    r: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)


class Batches(Block):
    """Upper bounds of a micro-batch on one device; scans of any size share a batch."""

    max_patches: int = Field(8192, gt=0, description="patches of all scans")
    max_tokens: int = Field(8192, gt=0, description="tokens of all texts, padding included")


class Loss(Block):
    """Weights of the tokens in the loss (paper, Methods): Σ w·nll / Σ w."""

    term_weight: float = Field(3.0, ge=0, description="tokens of medical terms in the answer")
    text_weight: float = Field(1.0, ge=0, description="other tokens of the answer")
    terms: str = Field("", description="a text file with one term a line; the list that ships where it is empty")
    plain_mean: bool = Field(False, description="weight 1 everywhere, as the published code optimises")


class Augmentation(Block):
    """Random changes of a scan; never a mirror image, because left and right are findings."""

    enabled: bool = True
    rotation_degrees: float = Field(5.0, ge=0, le=45)
    scale: float = Field(0.08, ge=0, lt=1, description="relative change of size, up and down")
    shift: float = Field(0.05, ge=0, lt=1, description="share of the image width")
    window_hu: float = Field(20.0, ge=0, description="change of both ends of a CT window in HU")
    gamma: float = Field(0.15, ge=0, description="largest change of log gamma, for scans that are no CT")


class Mixture(Block):
    """How often a row of each source is drawn; a source of n rows has the share n^(1 / temperature)."""

    temperature: float = Field(1.0, gt=0, description="1 keeps the sizes; larger values even them out")
    weights: dict[str, float] = Field(default_factory=dict, description="factor on a source or a task, by name")


class Stage(Block):
    """A stage of the demo training (`training/demo/`): each step is mixed of so many scans of each kind."""

    scans: dict[str, int] = Field(description="scans in a step: of each pack, of slices and of volumes")
    augmentation: Augmentation = Augmentation()
    text_tokens: int = Field(72, gt=0, description="questions and answers about a scan in a step, in tokens")
    training: dict[str, Any] = Field(default_factory=dict)


class Stages(Block):
    """The demo checkpoint: the vision tower with label heads, then the rest in front of the frozen tower."""

    tower: Stage
    language: Stage


class Recipe(Block):
    """All that decides a training, but for the data themselves."""

    model: str = Field("", description="folder or Hub id of the model to start from; the demo checkpoint where it is empty")
    revision: str | None = Field(None, description="commit or tag of the model on the Hub")
    data: str = Field("", description="a data set built by `radfm data build`, its Hub id, or a CSV or JSONL")
    streaming: bool = Field(False, description="read the shards as they are needed; needs training.max_steps")
    patch_cache: str = Field("", description="folder that keeps the patches of a frozen vision tower")
    hub_id: str | None = Field(None, description="owner/name to push the result to; private with training.hub_private_repo")
    parts: Parts = Parts()
    lora: Lora = Lora()
    bits: Literal[4, 8] | None = Field(None, description="quantise the frozen decoder (QLoRA)")
    batches: Batches = Batches()
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    mixture: Mixture = Mixture()
    stages: Stages | None = Field(
        None, description="the demo training, from nothing or from `model`; parts and batches do not count"
    )
    early_stopping_patience: int | None = Field(None, gt=0, description="evaluations without a better loss before it stops")
    training: dict[str, Any] = Field(default_factory=dict)


def recipe_names() -> list[str]:
    """The names of the recipes that ship."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: a recipe that ships (`recipe_names()`) or the path of a YAML file.
        overrides: `key=value` or `block.key=value`.

    Raises:
        RecipeError: an unknown recipe, key or type; the nearest right name stands in the message.
    """
    file = RECIPES / f"{name}.yaml" if name in recipe_names() else Path(name)
    if not file.is_file():
        raise RecipeError(
            f"{name}: is neither a recipe ({', '.join(recipe_names())}) nor a YAML file.{_nearest(name, recipe_names())}"
        )
    for override in overrides:
        if "=" not in override:
            raise RecipeError(f"{override}: an override is written key=value, for example training.learning_rate=1e-4.")
    try:
        config = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        raise RecipeError(f"{file}: cannot be read ({str(error).splitlines()[0]}).") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of keys to values.")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_sentence(error)) from error
    _check_training(recipe.training)
    if recipe.stages is not None:
        for stage in (recipe.stages.tower, recipe.stages.language):
            _check_training(stage.training)
    _check_parts(recipe)
    _check_streaming(recipe)
    _check_patch_cache(recipe)
    return recipe


def _sentence(error: ValidationError) -> str:
    """The first fault of a recipe as one sentence."""
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        block = Recipe
        for part in fault["loc"][:-1]:
            block = block.model_fields[str(part)].annotation  # type: ignore[assignment]
        return f"{path}: is no key of a recipe.{_nearest(str(fault['loc'][-1]), block.model_fields)}"
    return f"{path}={fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]}?"
    return f" There are {', '.join(names)}." if len(names) <= 10 else ""


def _check_training(values: dict[str, Any]) -> None:
    """Keys and types of the block `training` against the fields of TrainingArguments."""
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    for key, value in values.items():
        if key not in fields:
            raise RecipeError(f"training.{key}: is no field of TrainingArguments.{_nearest(key, fields)}")
        if key in REFUSED and value != fields[key].default:
            raise RecipeError(f"training.{key}={value}: {REFUSED[key]}")
        if type(value) is ALSO_TAKEN.get(key):
            continue
        try:
            TypeAdapter(fields[key].type, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            fault = error.errors()[0]["msg"]
            raise RecipeError(f"training.{key}={value!r}: {fault[0].lower()}{fault[1:]}.") from error
    _check_deepspeed(values.get("deepspeed"))


def _check_deepspeed(config: Any) -> None:
    if isinstance(config, str) and Path(config).is_file():
        config = OmegaConf.to_container(OmegaConf.load(config))
    if isinstance(config, dict) and (config.get("zero_optimization") or {}).get("stage") == 3:
        raise RecipeError(
            "training.deepspeed: ZeRO-3 hangs when ranks hold scans of different sizes; use ZeRO-2 or FSDP2 (training.fsdp)."
        )


def _check_streaming(recipe: Recipe) -> None:
    if not recipe.streaming:
        return
    if recipe.training.get("max_steps", -1) <= 0:
        raise RecipeError("training.max_steps: is needed with streaming=true, because a stream has no end.")
    if recipe.mixture != Mixture():
        raise RecipeError("mixture: needs the sizes of all sources, which a stream does not know; set streaming=false.")


def _check_patch_cache(recipe: Recipe) -> None:
    if not recipe.patch_cache:
        return
    for key, holds in (
        ("parts.vision_tower=frozen", recipe.parts.vision_tower == "frozen"),
        ("augmentation.enabled=false", not recipe.augmentation.enabled),
        ("streaming=false", not recipe.streaming),
    ):
        if not holds:
            raise RecipeError(f"patch_cache: a scan has the same patches in every epoch only with {key}; set it.")


def _check_parts(recipe: Recipe) -> None:
    if recipe.bits is not None and recipe.parts.decoder == "full":
        raise RecipeError(f"bits={recipe.bits}: a quantised decoder cannot be trained in full; set parts.decoder=lora.")
    if recipe.parts.decoder != "full" and recipe.parts.decoder_frozen_epochs:
        raise RecipeError("parts.decoder_frozen_epochs: only a decoder that is trained in full can start frozen.")
    for part in ("decoder", "vision_tower"):
        if recipe.parts.has_adapters and getattr(recipe.parts, part) == "full":
            raise RecipeError(
                f"parts.{part}=full: beside adapters only projector and perceiver are trained in full; set lora."
            )
    trained = [recipe.parts.decoder, recipe.parts.vision_tower, recipe.parts.perceiver, recipe.parts.projector]
    if all(how == "frozen" for how in trained):
        raise RecipeError("parts: every part is frozen, so nothing would be trained.")
