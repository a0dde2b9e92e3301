"""`radfm inspect`: what a scan is, and what else its source holds, in lines and as a PNG."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    AllowMissingOption,
    MaxGbOption,
    ReadChoice,
    SeriesOption,
    VolumeOption,
    read_scan,
    refuse,
)


def inspect(
    path: Annotated[str, typer.Argument(help="A file, a folder, or a zip.")],
    png: Annotated[Path | None, typer.Option(help="Draw the middle planes with letters and a bar of millimetres.")] = None,
    series: SeriesOption = None,
    volume: VolumeOption = None,
    allow_missing: AllowMissingOption = False,
    max_gb: MaxGbOption = None,
) -> None:
    """Describe a scan: series, size, spacing, axes, windows, warnings. Nothing about the patient is shown.

    Where the source holds several series or volumes, they are listed; --series and --volume choose one.

    Examples:

      radfm inspect ct_series/

      radfm inspect brain.nii.gz --png brain.png

      radfm inspect study.zip --series 401

      radfm inspect echoes/ --volume EchoTime=4.6
    """
    scan = read_scan(path, ReadChoice.parse(series, volume, allow_missing, max_gb))
    from radfm.scan_radfm import ScanError

    from .describe import describe, draw

    for line in describe(path, scan):
        print(line)
    for line in list_contents(path):
        print(line)
    if png is not None:
        try:
            draw(scan, png)
        except (ScanError, OSError, ValueError) as error:
            refuse(f"{png}: cannot be written ({error})")


def list_contents(path: str) -> Iterator[str]:
    """Lines that name the series and the volumes of a source, where it has several."""
    from radfm import load_scan_radfm

    listings: list[tuple[str, str, Callable[[str], list[str]]]] = [
        ("series", "--series", load_scan_radfm.list_series),
        ("volumes", "--volume", load_scan_radfm.list_volumes),
    ]
    for kind, option, list_them in listings:
        try:
            names = list_them(path)
        except load_scan_radfm.ScanError:
            continue  # a source without DICOM has no series; what cannot be read was refused before
        if len(names) > 1:
            yield f"  {kind:<9} {len(names)} in all; {option} chooses one"
            yield from (f"            {name}" for name in names)
