"""`radfm train`: train a recipe on a data set, or on a CSV or JSONL that is built into one first."""

from typing import Annotated

import typer

from .common import refuse

OWN_ROWS = (".csv", ".tsv", ".jsonl")


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say steps, memory and time, and load no weights.")] = False,
) -> None:
    """Train a model by a recipe; the same command goes on after an interruption.

    Recipes: finetune-lora, finetune-qlora, projector-only, finetune-radmd, pretrain-medmd, demo, english-demo. The block
    `training` has the fields of transformers' TrainingArguments.

    Examples:

      radfm train finetune-lora data=my_scans.csv model=me/radfm training.output_dir=radfm-liver

      radfm train pretrain-medmd data=medmd/ --plan

      radfm train finetune-lora data=medmd/ training.max_steps=500 lora.r=8 batches.max_patches=4096

      torchrun --nproc-per-node 8 -m radfm.training pretrain-medmd data=medmd/ training.per_device_train_batch_size=32
    """
    from radfm.medmd.schema import DataError
    from radfm.training.recipe import RecipeError, load_recipe

    try:
        checked = load_recipe(recipe, overrides or ())
        if not checked.data:
            raise RecipeError("data: is missing; name a data set, its Hub id, or a CSV or JSONL, as in data=my_scans.csv.")
        if checked.data.endswith(OWN_ROWS):
            checked = checked.model_copy(update={"data": _build(checked.data, checked.training["output_dir"])})
        if plan:
            from radfm.training.estimate import describe_training

            for line in describe_training(checked):
                print(line)
            return
        if checked.stages is None:
            from radfm.training.run import train as train_recipe
        else:
            from radfm.training.demo.train import train_demo as train_recipe
        from radfm.training.trainer import TrainingError

        try:
            out = train_recipe(checked)
        except TrainingError as error:
            refuse(str(error))
    except (RecipeError, DataError) as error:
        refuse(str(error))
    print(f"trained: {out}")


def _build(file: str, output_dir: str) -> str:
    """Build the rows of a user into a data set beside the training."""
    from pathlib import Path

    from radfm.medmd.build import BuildOptions, build

    out = Path(output_dir) / "data"
    build({Path(file).suffix[1:].replace("tsv", "csv"): Path(file)}, out, BuildOptions())
    return str(out)
