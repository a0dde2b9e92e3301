"""`radfm ask`: one question about scans, or a conversation about them."""

import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    AllowMissingOption,
    MaxGbOption,
    ModelOption,
    ReadChoice,
    SeriesOption,
    VolumeOption,
    find_model,
    read_scan,
    refuse,
)

if TYPE_CHECKING:
    from radfm.scan_radfm import Scan

    from .chat import ChatSession

END_OF_CONVERSATION = ("", "exit", "quit")


def ask(
    scans_and_question: Annotated[
        list[str], typer.Argument(metavar="SCAN... [QUESTION]", help="Files, folders or zips; the question last.")
    ],
    model: ModelOption = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …, or auto to spread; a GPU where there is one.")] = "",
    bits: Annotated[int | None, typer.Option(help="Load the decoder in 4 or 8 bits (needs bitsandbytes).")] = None,
    series: SeriesOption = None,
    volume: VolumeOption = None,
    allow_missing: AllowMissingOption = False,
    max_gb: MaxGbOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when the answer is complete.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would go into the model; load no weights.")] = False,
) -> None:
    """Ask about one or several scans; without a question, start a conversation about them.

    Examples:

      radfm ask chest.dcm "Which imaging modality is this?"

      radfm ask ct_series/ "Which body part is shown?" --json

      radfm ask before.nii.gz after.nii.gz "What is the finding?" --model my-radfm --device cuda

      radfm ask ct_series.zip

      radfm ask study/ "Is this CT or MRI?" --series 401

      radfm ask echoes/ "Is this scan 2D or 3D?" --volume EchoTime=4.6

      radfm ask chest.dcm "What is the finding?" --model radfm-14b --bits 4

      radfm ask ct_series/ --plan
    """
    sources, question = _split_arguments(scans_and_question)
    if as_json and question is None and not plan:
        refuse("--json prints one answer: put a question behind the scans.")
    check_packages(bits, device)
    start = time.monotonic()
    model = find_model(model)
    choice = ReadChoice.parse(series, volume, allow_missing, max_gb)
    scans = [read_scan(source, choice) for source in sources]
    for source, scan in zip(sources, scans, strict=True):
        for warning in scan.warnings:
            print(f"{source}: {warning}", file=sys.stderr)
    if plan:
        _print_plan(model, sources, scans, device, max_new_tokens)
        return
    session = _open_session(model, device, bits)
    session.set_scans(scans)
    if question is None:
        _converse(session, max_new_tokens)
    elif as_json:
        answer = session.ask(question, max_new_tokens)
        seconds = time.monotonic() - start
        print(json.dumps(_answer_as_json(model, question, answer, sources, scans, seconds), ensure_ascii=False))
    else:
        session.ask(question, max_new_tokens, stream=True)


def _split_arguments(arguments: list[str]) -> tuple[list[str], str | None]:
    """The scans, and the question where the last argument is no path."""
    last = arguments[-1]
    looks_like_path = os.path.exists(last) or (" " not in last and (os.sep in last or Path(last).suffix not in ("", ".")))
    if len(arguments) == 1 or looks_like_path:
        return arguments, None
    return arguments[:-1], last


def check_packages(bits: int | None, device: str) -> None:
    """Refuse options whose packages are not installed, before anything is loaded."""
    if bits not in (None, 4, 8):
        refuse(f"--bits {bits} is neither 4 nor 8.")
    option, packages = "device auto", ["accelerate"] if device == "auto" else []
    if bits is not None:
        option, packages = "bits", ["bitsandbytes", "accelerate"]
    for package in packages:
        if find_spec(package) is None:
            refuse(f"--{option} needs {package}: pip install {package}.")


def _open_session(model: str, device: str, bits: int | None) -> "ChatSession":
    """Load the model. Ends the command with status 2 where it cannot be loaded."""
    from .chat import ChatSession

    try:
        return ChatSession(model, device, bits)
    except (OSError, ValueError) as error:
        refuse(f"{model}: cannot be loaded as RadFM ({str(error).strip().splitlines()[0]})")
    except RuntimeError as error:
        # torch says "Invalid device string" and "CUDA error: …" in a RuntimeError; anything else is our fault.
        if device and "device" in str(error).lower():
            refuse(f"--device {device}: {str(error).strip().splitlines()[0]}")
        raise


def _answer_as_json(
    model: str, question: str, answer: str, sources: Sequence[str], scans: Sequence["Scan"], seconds: float
) -> dict[str, Any]:
    described = [
        {"path": source, "modality": scan.modality, "shape": scan.voxels.shape, "spacing": scan.spacing}
        for source, scan in zip(sources, scans, strict=True)
    ]
    return {"model": model, "question": question, "answer": answer, "scans": described, "seconds": round(seconds, 2)}


def _converse(session: "ChatSession", max_new_tokens: int) -> None:
    print("Ask about the scan; an empty line ends the conversation.", file=sys.stderr)
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if question.lower() in END_OF_CONVERSATION:
            return
        session.ask(question, max_new_tokens, stream=True)


def _print_plan(model: str, sources: list[str], scans: list["Scan"], device: str, max_new_tokens: int) -> None:
    from .estimate import estimate

    for line in estimate(model, sources, scans, device, max_new_tokens):
        print(line)
