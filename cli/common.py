"""What several commands share: refusing bad input in one sentence, reading scans, checking that a model can be there."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from radfm.scan_radfm import Scan

MODEL_REPOSITORY = Path(__file__).parent.parent
BAD_INPUT = 2  # exit status; Python's own for an uncaught exception, our fault, is 1


def refuse(sentence: str) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    raise typer.Exit(BAD_INPUT)


def read_scan(source: str, **choice: Any) -> "Scan":
    from radfm.load_scan_radfm import ScanError, load_scan

    try:
        return load_scan(source, **choice)
    except ScanError as error:
        refuse(str(error))


def check_model(model: str) -> None:
    if Path(model).is_dir() and not (Path(model) / "config.json").exists():
        refuse(f"{model}: holds no model (no config.json); name a folder or a Hub id with --model.")
    if not Path(model).is_dir() and model.count("/") != 1:
        refuse(f"{model}: is neither a folder nor a Hub id (owner/name).")
