"""The command line. Rooms are imported when a command needs them, so that `radfm --help` is instant."""

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .scan_types_radfm import Scan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
HERE = Path(__file__).parent
BAD_INPUT, OUR_FAULT = 2, 1
END_OF_CONVERSATION = ("", "exit", "quit")


@app.callback()
def radfm() -> None:
    """RadFM reads 2D and 3D radiology scans and answers in words. For research, not for diagnosis."""


@app.command()
def ask(
    scans_and_question: Annotated[
        list[str], typer.Argument(metavar="SCAN... [QUESTION]", help="Files, folders or zips; the question last.")
    ],
    model: Annotated[str, typer.Option(help="A folder or a Hub id; the demo checkpoint where it is left out.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …, or auto to spread; a GPU where there is one.")] = "",
    bits: Annotated[int | None, typer.Option(help="Load the decoder in 4 or 8 bits (needs bitsandbytes).")] = None,
    series: Annotated[str | None, typer.Option(help="Which DICOM series of several: UID, number or description.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Fill missing slices by interpolation.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when the answer is complete.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would go into the model, and load no weights.")] = False,
) -> None:
    """Ask about one or several scans; without a question, start a conversation about them.

    Examples:

      radfm ask chest.dcm "Which imaging modality is this?"

      radfm ask ct_series/ "Which body part is shown?" --json

      radfm ask before.nii.gz after.nii.gz "What is the finding?" --model my-radfm --device cuda

      radfm ask ct_series.zip

      radfm ask study/ "Is this CT or MRI?" --series 401

      radfm ask chest.dcm "What is the finding?" --model radfm-14b --bits 4

      radfm ask ct_series/ --plan
    """
    sources, question = _split(scans_and_question)
    if bits not in (None, 4, 8):
        _refuse(f"--bits {bits} is neither 4 nor 8.")
    needed = ["bitsandbytes", "accelerate"] if bits is not None else ["accelerate"] if device == "auto" else []
    for package in needed:
        if find_spec(package) is None:
            _refuse(f"--{'bits' if bits is not None else 'device auto'} needs {package}: pip install {package}.")
    start = time.time()
    model = model or str(HERE)
    _check_model(model)
    scans = [_load(source, series=series, allow_missing=allow_missing) for source in sources]
    for source, scan in zip(sources, scans, strict=True):
        for warning in scan.warnings:
            print(f"{source}: {warning}", file=sys.stderr)
    if plan:
        _print_plan(model, sources, scans, device, max_new_tokens)
        return
    from .asking import Asker

    asker = Asker(model, device, bits)
    asker.show(scans)
    if question is None:
        _converse(asker, max_new_tokens)
    elif as_json:
        answer = asker.ask(question, max_new_tokens)
        print(json.dumps(_answer(model, question, answer, sources, scans, time.time() - start), ensure_ascii=False))
    else:
        asker.ask(question, max_new_tokens, stream=True)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A file, a folder, or a zip.")],
    png: Annotated[Path | None, typer.Option(help="Draw the middle planes with letters and a bar of millimetres.")] = None,
    series: Annotated[str | None, typer.Option(help="Which series of several: UID, number or description.")] = None,
    volume: Annotated[int | None, typer.Option(help="Which volume or frame of several, from 0.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Fill missing slices by interpolation.")] = False,
) -> None:
    """Say what a scan is: series, size, spacing, axes, windows, and what to be wary of. Nothing of the patient is shown.

    Examples:

      radfm inspect ct_series/

      radfm inspect brain.nii.gz --png brain.png

      radfm inspect study.zip --series 401
    """
    scan = _load(path, series=series, volume=volume, allow_missing=allow_missing)
    from .inspecting import describe, draw

    for line in describe(path, scan):
        print(line)
    if png is not None:
        draw(scan, png)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="The published .bin, its zip (all parts), a folder with it, a Hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder of the new model repository.")],
    part: Annotated[str, typer.Option(help="all, or vision: the 3D ViT and Perceiver alone.")] = "all",
    decoder: Annotated[str | None, typer.Option(help="Folder or Hub id of another causal decoder to take.")] = None,
    text_config: Annotated[Path | None, typer.Option(help="JSON with what the tensors do not tell of the decoder.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id of LLaMA's tokenizer.")] = None,
    published_generation: Annotated[bool, typer.Option(help="Keep the published stopping rule, id 1 instead of 2.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Folder with the published code's numbers to compare.")] = None,
    to_published: Annotated[bool, typer.Option(help="The other way: SOURCE is a RadFM folder, OUT a .bin.")] = False,
) -> None:
    """Make a model repository of the published checkpoint, tensor by tensor; interrupted, start it again.

    Examples:

      radfm convert pytorch_model.bin radfm-14b --dtype bfloat16 --tokenizer llama-tokenizer/

      radfm convert RadFM.zip radfm-14b --dtype bfloat16

      radfm convert owner/published-radfm radfm-14b --dtype bfloat16

      radfm convert pytorch_model.bin radfm-vision --part vision

      radfm convert pytorch_model.bin my-radfm --decoder owner/causal-decoder --dtype bfloat16

      radfm convert my-radfm pytorch_model.bin --to-published
    """
    from .conversion_radfm import DTYPES, ConversionError

    if dtype not in DTYPES:
        _refuse(f"--dtype {dtype} is none of {', '.join(DTYPES)}.")
    if part not in ("all", "vision"):
        _refuse(f"--part {part} is neither all nor vision.")
    try:
        if to_published:
            from .conversion_radfm import to_published as convert_back

            lines = [f"{convert_back(Path(source), out)} tensors written to {out}"]
        elif decoder is not None:
            from .conversion_decoder_radfm import with_decoder

            lines = with_decoder(source, decoder, out, dtype)
        else:
            from .conversion_radfm import convert as convert_checkpoint

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
        _refuse(str(error))
    except (OSError, json.JSONDecodeError) as error:
        _refuse(f"{text_config or source}: cannot be read ({error}).")
    for line in lines:
        print(line)


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="A folder or a Hub id; the demo checkpoint where it is left out.")] = "",
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 where it is left out.")] = None,
) -> None:
    """Show scans to the model in a browser: a viewer, a conversation, where it looked. Nothing leaves this machine.

    Examples:

      radfm demo

      radfm demo --model my-radfm --port 8000
    """
    if find_spec("gradio") is None:
        _refuse("radfm demo needs gradio: pip install 'gradio[mcp]'.")
    model = model or str(HERE)
    _check_model(model)
    # As on the Hub, where the folder is a repository of its own.
    sys.path.insert(0, str(HERE / "space"))
    from importlib import import_module

    try:
        import_module("app").serve(model, port)
    except OSError as error:
        _refuse(str(error))


def _with_progress(work: Any) -> Any:
    """Run a long job that tells of each tensor, with a line that shows where it is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("converting", total=None)
        return work(lambda name, size: bar.update(task, advance=size, description=name[-48:]))


def _split(words: list[str]) -> tuple[list[str], str | None]:
    """Scans, and the question where the last word is no path."""
    last = words[-1]
    looks_like_path = os.path.exists(last) or (" " not in last and (os.sep in last or Path(last).suffix not in ("", ".")))
    if len(words) == 1 or looks_like_path:
        return words, None
    return words[:-1], last


def _load(source: str, **choice: Any) -> "Scan":
    from .scans_radfm import ScanError, load_scan

    try:
        return load_scan(source, **choice)
    except ScanError as error:
        _refuse(str(error))


def _check_model(model: str) -> None:
    if Path(model).is_dir() and not (Path(model) / "config.json").exists():
        _refuse(f"{model}: holds no model (no config.json); name a folder or a Hub id with --model.")
    if not Path(model).is_dir() and model.count("/") != 1:
        _refuse(f"{model}: is neither a folder nor a Hub id (owner/name).")


def _refuse(sentence: str) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    raise typer.Exit(BAD_INPUT)


def _answer(
    model: str, question: str, answer: str, sources: list[str], scans: list["Scan"], seconds: float
) -> dict[str, Any]:
    described = [
        {"path": source, "modality": scan.modality, "shape": scan.voxels.shape, "spacing": scan.spacing}
        for source, scan in zip(sources, scans, strict=True)
    ]
    return {"model": model, "question": question, "answer": answer, "scans": described, "seconds": round(seconds, 2)}


def _converse(asker: Any, max_new_tokens: int) -> None:
    print("Ask about the scan; an empty line ends the conversation.", file=sys.stderr)
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if question.lower() in END_OF_CONVERSATION:
            return
        asker.ask(question, max_new_tokens, stream=True)


def _print_plan(model: str, sources: list[str], scans: list["Scan"], device: str, max_new_tokens: int) -> None:
    from .planning import plan

    for line in plan(model, sources, scans, device, max_new_tokens):
        print(line)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
