"""Which training a recipe describes: in stages from labels, as the demo checkpoint's, or of a model on records."""

from pathlib import Path

from accelerate import PartialState

from radfm.hub.errors import PushError
from radfm.hub.files import is_hub_id
from radfm.hub.push_model import plan_model
from radfm.hub.upload import Target

from .faults import TrainingError
from .recipe import Recipe, RecipeError
from .run import resolve_base, train


def start_training(recipe: Recipe) -> Path:
    """Train a recipe, and push the result where the recipe has a `hub_id`; the folder with the result.

    Interrupted, the same call goes on from the last checkpoint in `training.output_dir`.

    Raises:
        RecipeError: the recipe does not fit the data, the folder holds another training, or the result could not be pushed.
        DataError: no such data.
        TrainingError: a step that could not be taken, with the ids of the records; or a failed push of a finished training.
    """
    check_hub_id(recipe)
    if recipe.stages is None:
        out = train(recipe)
    else:
        from .demo.train import train_demo

        out = train_demo(recipe)
    if recipe.hub_id and PartialState().is_main_process:
        push_result(out, Target(recipe.hub_id, "model", private=bool(recipe.training.get("hub_private_repo"))))
    return out


def check_hub_id(recipe: Recipe) -> None:
    """Refuse, before the training, a result that could not be pushed after it.

    Raises:
        RecipeError: `hub_id` is no Hub id, or adapters would belong to a folder that nobody else has.
    """
    if recipe.hub_id is None:
        return
    if not is_hub_id(recipe.hub_id):
        raise RecipeError(f"hub_id={recipe.hub_id}: is no Hub id; write OWNER/NAME.")
    base = resolve_base(recipe).model
    if recipe.stages is None and recipe.parts.has_adapters and Path(base).is_dir():
        raise RecipeError(
            f"hub_id={recipe.hub_id}: adapters need their base model, and nobody else has {base}. "
            "Push it first (radfm push model FOLDER OWNER/NAME) and train with model=OWNER/NAME."
        )


def push_result(out: Path, target: Target) -> None:
    """Push a trained folder as `radfm push model` does.

    Raises:
        TrainingError: the push failed; the folder is whole.
    """
    try:
        plan_model(out, target).upload(print)
    except PushError as error:
        raise TrainingError(
            f"{out} is trained but not pushed: {error} Then: radfm push model {out} {target.repo_id}"
        ) from error
