"""Train the demo checkpoint: `python -m radfm.training.demo --help`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from .baseline import train_vit
from .checkpoint import image_processor, new_model, vision_config, write
from .datasets import read_packs
from .evaluate import evaluate, save, table
from .packs import PACKS
from .qa_templates import train_tokenizer
from .stage1_vision import train_vision_tower
from .stage2_language import train_language_model

ROOT = Path(__file__).parents[2]
TOWER_STEPS, LANGUAGE_STEPS, VIT_STEPS = 5000, 2000, 1500


def main(
    data: Annotated[Path, typer.Option(help="The folder of labelled packs.")] = ROOT.parent / "shared" / "data",
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = ROOT,
    work: Annotated[Path, typer.Option(help="Where the training keeps its state.")] = ROOT / "checkpoints" / "demo",
    brief: Annotated[bool, typer.Option("--brief", help="A few steps of each stage, to see that all of it runs.")] = False,
    vit: Annotated[bool, typer.Option(help="Train a plain ViT classifier too, to compare with.")] = False,
) -> None:
    """Train the demo checkpoint on packs of real scans: the vision tower, then the language model; then evaluate it.

    An interrupted training resumes where it stopped.

    Examples:

      python -m radfm.training.demo

      python -m radfm.training.demo --data packs/ --out my-radfm/ --work my-training/ --vit
    """
    console = Console()
    missing = [pack for pack in PACKS if not (data / f"{pack.name}.csv").exists()]
    if missing:
        names = ", ".join(pack.name for pack in missing)
        console.print(f"{data}: lacks the packs {names}; name their folder with --data.", soft_wrap=True)
        sources = Table("pack", "content", "source", "licence")
        for pack in missing:
            sources.add_row(*pack)
        console.print(sources)
        raise typer.Exit(2)
    work.mkdir(parents=True, exist_ok=True)
    divisor = 1000 if brief else 1
    processor = RadFMProcessor(image_processor(), train_tokenizer())
    samples = read_packs(data, processor.image_processor)
    train = [sample for sample in samples if sample.split == "train"]

    classifier = train_vision_tower(vision_config(), train, TOWER_STEPS // divisor, work)
    model = new_model(processor.tokenizer)
    tower = {name: weight for name, weight in classifier.tower.state_dict().items() if not name.startswith("perceiver.")}
    model.model.vision_tower.load_state_dict(tower, strict=False)
    stage2 = train_language_model(model, processor.tokenizer, train, LANGUAGE_STEPS // divisor, work)
    write(stage2.model, processor, out)

    plain = train_vit(vision_config(), train, VIT_STEPS // divisor, work) if vit else None
    model = RadFMForConditionalGeneration.from_pretrained(out)
    scores = evaluate(model, RadFMProcessor.from_pretrained(out), classifier, plain, samples)
    save(scores, (out / "training" / "demo" if out == ROOT else out) / "scores.json")
    console.print(table(scores), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
