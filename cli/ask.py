"""`radfm ask`: one question about scans, or a conversation about them."""

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import MODEL_REPOSITORY, check_model, read_scan, refuse

if TYPE_CHECKING:
    from radfm.scan_radfm import Scan

END_OF_CONVERSATION = ("", "exit", "quit")


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
        refuse(f"--bits {bits} is neither 4 nor 8.")
    needed = ["bitsandbytes", "accelerate"] if bits is not None else ["accelerate"] if device == "auto" else []
    for package in needed:
        if find_spec(package) is None:
            refuse(f"--{'bits' if bits is not None else 'device auto'} needs {package}: pip install {package}.")
    start = time.time()
    model = model or str(MODEL_REPOSITORY)
    check_model(model)
    scans = [read_scan(source, series=series, allow_missing=allow_missing) for source in sources]
    for source, scan in zip(sources, scans, strict=True):
        for warning in scan.warnings:
            print(f"{source}: {warning}", file=sys.stderr)
    if plan:
        _print_plan(model, sources, scans, device, max_new_tokens)
        return
    from .chat import ChatSession

    session = ChatSession(model, device, bits)
    session.set_scans(scans)
    if question is None:
        _converse(session, max_new_tokens)
    elif as_json:
        answer = session.ask(question, max_new_tokens)
        print(json.dumps(_answer(model, question, answer, sources, scans, time.time() - start), ensure_ascii=False))
    else:
        session.ask(question, max_new_tokens, stream=True)


def _split(words: list[str]) -> tuple[list[str], str | None]:
    """Scans, and the question where the last word is no path."""
    last = words[-1]
    looks_like_path = os.path.exists(last) or (" " not in last and (os.sep in last or Path(last).suffix not in ("", ".")))
    if len(words) == 1 or looks_like_path:
        return words, None
    return words[:-1], last


def _answer(
    model: str, question: str, answer: str, sources: list[str], scans: list["Scan"], seconds: float
) -> dict[str, Any]:
    described = [
        {"path": source, "modality": scan.modality, "shape": scan.voxels.shape, "spacing": scan.spacing}
        for source, scan in zip(sources, scans, strict=True)
    ]
    return {"model": model, "question": question, "answer": answer, "scans": described, "seconds": round(seconds, 2)}


def _converse(session: Any, max_new_tokens: int) -> None:
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
    from .estimate import plan

    for line in plan(model, sources, scans, device, max_new_tokens):
        print(line)
