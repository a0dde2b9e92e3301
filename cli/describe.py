"""What a scan is: in lines (series, size, axes, windows, warnings) and as a picture of its three middle planes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from radfm.affine_radfm import AXIS_LETTERS, opposite_letters
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.scan_radfm import Scan, ScanError, to_ras

PLANES = ("axial", "coronal", "sagittal")
# Of each plane: the axes of RAS along which its rows and columns run, and the one through it. As a radiologist hangs them,
# rows run to the back or the feet and columns to the left or the back, against RAS.
AXES = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}
PIXELS_PER_PLANE, MARGIN, BARS_MM = 360, 28, (100, 50, 20, 10, 5, 2, 1)


def describe(path: str, scan: Scan) -> Iterator[str]:
    """Lines a person reads."""
    kind = "volume" if scan.is_volume else "image"
    yield f"{path}: {scan.modality or 'modality unknown'}, {kind}"
    for label, value in scan.describe():
        yield f"  {label.lower():<9} {value}"


def draw(scan: Scan, file: Path) -> None:
    """The middle planes as a PNG, with orientation letters and a bar in millimetres. Raises `ScanError` without Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ScanError(f"{file}: drawing a picture needs Pillow: pip install pillow.") from error
    low, high = RadFMImageProcessor().intensity_windows(scan)[0]
    if scan.affine is None or scan.spacing is None or not scan.is_volume:
        mm = scan.spacing or (1.0, 1.0, 1.0)
        letters = scan.orientation_letters()
        ends = None if letters is None else _ends(letters[0], letters[1])
        middle = scan.voxels[..., scan.voxels.shape[-1] // 2]
        panels = [_panel(middle, (mm[0], mm[1]), (low, high), ends, scan.spacing is not None)]
    else:
        ras = to_ras(scan)
        assert ras.spacing is not None
        panels = []
        for plane in PLANES:
            rows, columns, through = AXES[plane]
            middle = np.take(ras.voxels, ras.voxels.shape[through + 1] // 2, axis=through + 1)
            if rows > columns:
                middle = middle.transpose(0, 2, 1)
            middle = middle[:, ::-1, ::-1]
            ends = _ends(AXIS_LETTERS[rows][0], AXIS_LETTERS[columns][0])
            panels.append(_panel(middle, (ras.spacing[rows], ras.spacing[columns]), (low, high), ends, True))
    sheet = Image.new("L", (sum(p.width for p in panels), max(p.height for p in panels)))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (sheet.height - panel.height) // 2))
        left += panel.width
    sheet.save(file)


def _ends(down: str, right: str) -> tuple[str, str, str, str]:
    """Letters above, below, left and right of a picture whose rows run to `down` and columns to `right`."""
    return opposite_letters(down), down, opposite_letters(right), right


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
