"""`radfm convert`: the published weights into a model repository, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import refuse


def convert(
    source: Annotated[str, typer.Argument(help="The published .bin, a zip or folder that holds it, or a Hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder of the new model repository.")],
    part: Annotated[str, typer.Option(help="all, or vision: the 3D ViT and Perceiver alone.")] = "all",
    decoder: Annotated[str | None, typer.Option(help="Folder or Hub id of another causal decoder.")] = None,
    text_config: Annotated[Path | None, typer.Option(help="JSON of decoder settings that shapes do not tell.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id of LLaMA's tokenizer.")] = None,
    published_generation: Annotated[bool, typer.Option(help="Stop at id 1, as the published code does.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Folder with the published code's numbers.")] = None,
    to_published: Annotated[bool, typer.Option(help="The other way: SOURCE is a RadFM folder, OUT a .bin.")] = False,
    split: Annotated[
        bool, typer.Option("--split", help="SOURCE is a RadFM: OUT/decoder for vLLM, OUT/front for us.")
    ] = False,
) -> None:
    """Convert the published checkpoint into a model repository, tensor by tensor. If it is interrupted, start it again.

    Examples:

      radfm convert pytorch_model.bin radfm-14b --dtype bfloat16 --tokenizer llama-tokenizer/

      radfm convert RadFM.zip radfm-14b --dtype bfloat16

      radfm convert owner/published-radfm radfm-14b --dtype bfloat16

      radfm convert pytorch_model.bin radfm-vision --part vision

      radfm convert pytorch_model.bin my-radfm --decoder owner/causal-decoder --dtype bfloat16

      radfm convert my-radfm pytorch_model.bin --to-published

      radfm convert radfm-14b radfm-14b-split --split
    """
    from radfm.conversion.convert import ConversionError
    from radfm.conversion.tensors import DTYPES

    if dtype not in DTYPES:
        refuse(f"--dtype {dtype} is none of {', '.join(DTYPES)}.")
    if part not in ("all", "vision"):
        refuse(f"--part {part} is neither all nor vision.")
    try:
        if to_published:
            from radfm.conversion.convert import to_published as convert_back

            lines = [f"{convert_back(Path(source), out)} tensors written to {out}"]
        elif split:
            from radfm.conversion.split import split as split_model

            lines = split_model(source, out)
        elif decoder is not None:
            from radfm.conversion.decoder import with_decoder

            lines = with_decoder(source, decoder, out, dtype)
        else:
            from radfm.conversion.convert import convert as convert_checkpoint

            options: dict[str, Any] = {
                "part": part,
                "text_config": None if text_config is None else json.loads(text_config.read_text()),
                "dtype": dtype,
                "tokenizer": tokenizer,
                "published_generation": published_generation,
                "reference": reference,
            }
            lines = _with_progress(lambda progress: convert_checkpoint(source, out, **options, progress=progress))
    except ConversionError as error:
        refuse(str(error))
    except json.JSONDecodeError as error:
        refuse(f"{text_config}: is no JSON ({error}).")
    except OSError as error:
        refuse(f"{error.filename or source}: cannot be read or written ({error.strerror or error}).")
    for line in lines:
        print(line)


def _with_progress(work: Callable[[Callable[[str, int], None]], list[str]]) -> list[str]:
    """Run `work`, which calls its argument with the name and bytes of each tensor, and draw a progress bar of that."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)
        return work(lambda name, size: bar.update(task, advance=size, description=name[-48:]))
