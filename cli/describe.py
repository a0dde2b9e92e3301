"""What a scan is: in lines (series, size, axes, windows, warnings) and as a picture of its three middle planes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.scan_radfm import Scan, ScanError, to_ras

LETTERS = ("LR", "PA", "IS")
PLANES = ("axial", "coronal", "sagittal")
# Of each plane: the axes of RAS along which its rows and columns run, and the one through it. As a radiologist hangs them,
# rows run to the back or the feet and columns to the left or the back, against RAS.
AXES = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}
PIXELS_PER_PLANE, MARGIN, BARS_MM = 360, 28, (100, 50, 20, 10, 5, 2, 1)


def describe(path: str, scan: Scan) -> Iterator[str]:
    """Lines a person reads."""
    channels, *size = scan.voxels.shape
    kind = "volume" if scan.is_volume else "image"
    yield f"{path}: {scan.modality or 'modality unknown'}, {kind}{', colour' if channels == 3 else ''}"
    if scan.series:
        yield f"  series    {scan.series}"
    yield f"  size      {' × '.join(map(str, size))} voxels (rows, columns, slices)"
    if scan.spacing is not None:
        extent = " × ".join(f"{n * mm:.0f}" for n, mm in zip(size, scan.spacing, strict=True))
        yield f"  spacing   {' × '.join(f'{mm:.4g}' for mm in scan.spacing)} mm; {extent} mm in all"
    if scan.affine is not None:
        rows, columns, slices = _letters(scan.affine)
        yield f"  axes      rows run to {rows}, columns to {columns}, slices to {slices}"
    yield f"  values    {scan.voxels.min():g} to {scan.voxels.max():g}{' HU' if scan.modality == 'CT' else ''}"
    for low, high in scan.windows:
        yield f"  window    {low:g} to {high:g} (centre {(low + high) / 2:g}, width {high - low:g})"
    for warning in scan.warnings:
        yield f"  warning   {warning}"


def _letters(affine: np.ndarray) -> list[str]:
    """Where each voxel axis runs to: R, L, A, P, S or I."""
    strongest = np.abs(affine[:3, :3]).argmax(axis=0)
    return [LETTERS[a][int(affine[a, axis] > 0)] for axis, a in enumerate(strongest)]


def draw(scan: Scan, file: Path) -> None:
    """The middle planes as a PNG, with orientation letters and a bar in millimetres. Raises `ScanError` without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ScanError(f"{file}: drawing a picture needs Pillow: pip install pillow.") from error
    low, high = RadFMImageProcessor().intensity_windows(scan)[0]
    if scan.affine is None or scan.spacing is None or not scan.is_volume:
        mm = scan.spacing or (1.0, 1.0, 1.0)
        ends = None if scan.affine is None else _ends(*_letters(scan.affine)[:2])
        middle = scan.voxels[..., scan.voxels.shape[-1] // 2]
        panels = [_panel(middle, (mm[0], mm[1]), (low, high), ends, scan.spacing is not None)]
    else:
        voxels, spacing = to_ras(scan)
        panels = []
        for plane in PLANES:
            rows, columns, through = AXES[plane]
            middle = np.take(voxels, voxels.shape[through + 1] // 2, axis=through + 1)
            if rows > columns:
                middle = middle.transpose(0, 2, 1)
            middle = middle[:, ::-1, ::-1]
            ends = _ends(LETTERS[rows][0], LETTERS[columns][0])
            panels.append(_panel(middle, (spacing[rows], spacing[columns]), (low, high), ends, True))
    sheet = Image.new("L", (sum(p.width for p in panels), max(p.height for p in panels)))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (sheet.height - panel.height) // 2))
        left += panel.width
    sheet.save(file)


def _ends(down: str, right: str) -> tuple[str, str, str, str]:
    """Letters above, below, left and right of a picture whose rows run to `down` and columns to `right`."""
    other = dict(zip("LRPAIS", "RLAPSI", strict=True))
    return other[down], down, other[right], right


def _panel(voxels: np.ndarray, mm: tuple[float, float], window: tuple[float, float], ends: Any, with_bar: bool) -> Any:
    """One plane (channels, rows, columns) as a grey picture at its true proportions."""
    from PIL import Image, ImageDraw, ImageFont

    grey = voxels.mean(axis=0)
    low, high = window
    image = Image.fromarray((np.clip((grey - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8))
    height, width = grey.shape[0] * mm[0], grey.shape[1] * mm[1]
    scale = PIXELS_PER_PLANE / max(height, width)
    image = image.resize((max(round(width * scale), 1), max(round(height * scale), 1)), Image.Resampling.BILINEAR)
    panel = Image.new("L", (image.width + 2 * MARGIN, image.height + 2 * MARGIN))
    panel.paste(image, (MARGIN, MARGIN))
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(size=18)
    middle = panel.width / 2, panel.height / 2
    if ends:
        places = ((middle[0], MARGIN / 2), (middle[0], panel.height - MARGIN / 2), (MARGIN / 2, middle[1]))
        for letter, place in zip(ends, (*places, (panel.width - MARGIN / 2, middle[1])), strict=True):
            pen.text(place, letter, fill=255, font=font, anchor="mm")
    if with_bar:
        bar = next((mm for mm in BARS_MM if mm <= width / 3), BARS_MM[-1])
        bottom = panel.height - 8
        pen.line([(MARGIN, bottom), (MARGIN + bar * scale, bottom)], fill=255, width=3)
        pen.text((MARGIN, bottom - 12), f"{bar:g} mm", fill=255, font=ImageFont.load_default(size=12), anchor="lm")
    return panel
