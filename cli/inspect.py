"""`radfm inspect`: what a scan is, in lines and as a PNG."""

from pathlib import Path
from typing import Annotated

import typer

from .common import read_scan


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
    scan = read_scan(path, series=series, volume=volume, allow_missing=allow_missing)
    from .describe import describe, draw

    for line in describe(path, scan):
        print(line)
    if png is not None:
        draw(scan, png)
