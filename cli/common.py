"""What several commands share: errors in one line, the default model and device, options for reading scans."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from radfm.scan_radfm import Scan

PACKAGE = Path(__file__).parent.parent
BAD_INPUT = 2  # exit status; Python's own for an uncaught exception, which is our fault, is 1
GIGABYTE = 1_000_000_000

SeriesOption = Annotated[str | None, typer.Option(help="Which DICOM series of several: its UID, number or description.")]
VolumeOption = Annotated[
    str | None, typer.Option(help="Which volume of several: its index from 0, or KEY=VALUE such as EchoTime=4.6.")
]
AllowMissingOption = Annotated[bool, typer.Option("--allow-missing", help="Fill missing slices by interpolation.")]
MaxGbOption = Annotated[
    float | None, typer.Option("--max-gb", min=0.001, help="Refuse scans that need more memory than this, in GB.")
]
ModelOption = Annotated[str, typer.Option(help="A folder or a Hub id; by default the demo checkpoint of this package.")]


@dataclass(frozen=True)
class ReadChoice:
    """The options of a command about reading a scan, checked."""

    series: str | None
    volume: "int | dict[str, str | float] | None"
    allow_missing: bool
    max_bytes: int | None

    @classmethod
    def parse(cls, series: str | None, volume: str | None, allow_missing: bool, max_gb: float | None) -> "ReadChoice":
        """The options as they were typed. Ends the command with status 2 where `volume` is no index and no KEY=VALUE."""
        return cls(series, parse_volume(volume), allow_missing, None if max_gb is None else int(max_gb * GIGABYTE))


def refuse(sentence: str) -> NoReturn:
    """Print one line on standard error and end the command with status 2."""
    print(" ".join(sentence.split()), file=sys.stderr)
    raise typer.Exit(BAD_INPUT)


def parse_volume(text: str | None) -> "int | dict[str, str | float] | None":
    """An index, or {KEY: VALUE} with a number where the value is one.

    Example:
        >>> parse_volume("2"), parse_volume("EchoTime=4.6"), parse_volume("ImageType=PHASE")
        (2, {'EchoTime': 4.6}, {'ImageType': 'PHASE'})
    """
    if text is None:
        return None
    if text.isdigit():
        return int(text)
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        refuse(f"--volume {text} is neither an index from 0 nor KEY=VALUE, such as EchoTime=4.6.")
    try:
        return {key: float(value)}
    except ValueError:
        return {key: value}


def read_scan(source: str, choice: ReadChoice) -> "Scan":
    """Read a scan. Ends the command with status 2 where it cannot be read."""
    from radfm.load_scan_radfm import MAX_BYTES, ScanError, load_scan

    try:
        return load_scan(
            source,
            series=choice.series,
            volume=choice.volume,
            allow_missing=choice.allow_missing,
            max_bytes=choice.max_bytes or MAX_BYTES,
        )
    except ScanError as error:
        refuse(str(error))


def find_model(model: str) -> str:
    """The model that was named, or the demo checkpoint. Ends the command with status 2 where there is none.

    A Hub id is only looked at; whether the Hub has it shows when it is loaded.
    """
    if not model:
        if not (PACKAGE / "config.json").exists() or not (PACKAGE / "model.safetensors").exists():
            refuse("This installation of radfm has no demo checkpoint: name a folder or a Hub id with --model.")
        return str(PACKAGE)
    if Path(model).is_dir() and not any((Path(model) / name).exists() for name in ("config.json", "adapter_config.json")):
        refuse(f"{model}: holds no model (no config.json); name a folder or a Hub id with --model.")
    if not Path(model).is_dir() and model.count("/") != 1:
        refuse(f"{model}: is neither a folder nor a Hub id (owner/name).")
    return model


def default_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
