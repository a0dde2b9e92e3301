"""From the packs to the checkpoint in the repository's root: `python -m radfm.training.demo --help`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from radfm.medmd.build import build
from radfm.medmd.schema import DataError
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from ..recipe import RecipeError, load_recipe
from .checkpoint import image_processor, publish
from .evaluate import evaluate, save, table
from .scans import read_scans
from .train import train_demo

ROOT = Path(__file__).parents[2]


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe.")] = None,
    packs: Annotated[Path, typer.Option(help="The folder of packs.")] = ROOT.parent / "shared" / "data",
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = ROOT,
    work: Annotated[Path, typer.Option(help="Data set and state of the training.")] = ROOT / "checkpoints" / "demo",
) -> None:
    """Build the data set of the packs, train the recipe `demo` on it, score the checkpoint on the validation rows.

    An interrupted run goes on where it stopped.

    Examples:

      python -m radfm.training.demo

      python -m radfm.training.demo model=. stages.tower.training.max_steps=200 --out my-radfm/ --work my-training/
    """
    console = Console()
    try:
        build({"demo": packs}, work / "data")
        defaults = [f"data={work / 'data'}", f"training.output_dir={work / 'model'}"]
        trained = train_demo(load_recipe("demo", [*defaults, *(overrides or ())]))
    except (DataError, RecipeError) as error:
        console.print(str(error), soft_wrap=True, markup=False)
        raise typer.Exit(2) from error
    publish(trained, out)
    model, processor = RadFMForConditionalGeneration.from_pretrained(out), RadFMProcessor.from_pretrained(out)
    splits = [read_scans(str(work / "data"), s, image_processor(), trained / "scans") for s in ("train", "validation")]
    scores = evaluate(model, processor, *splits)
    save(scores, (out / "training" / "demo" if out == ROOT else out) / "scores.json")
    console.print(table(scores), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
