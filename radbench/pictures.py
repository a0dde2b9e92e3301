"""Scans as small PNGs inside a page, drawn by the Space's viewer module."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from radfm.image_processing_radfm import CT_WINDOWS
from radfm.scan_radfm import Scan, to_radiological_view
from radfm.space import viewer

from .items import BenchError
from .records import ScanReader

PIXELS = 224


@dataclass(frozen=True)
class Picture:
    """One slice of a scan.

    Args:
        uri: the PNG as a `data:` address.
        caption: which slice of how many, in which plane; for an image "image".
    """

    uri: str
    caption: str


def opening_window(scan: Scan) -> tuple[float, float]:
    """The grey values of black and white with which the Space opens a scan, in the scan's units."""
    windows = viewer.windows(scan, CT_WINDOWS)
    return (windows[0]["low"], windows[0]["high"]) if windows else (0.0, 255.0)


def draw_middle(scan: Scan, pixels: int = PIXELS) -> Picture:
    """The middle slice of a scan in radiological view."""
    view = to_radiological_view(scan)
    depth = view.voxels.shape[-1]
    buffer = io.BytesIO()
    viewer.draw_slice(view, depth // 2, opening_window(scan), pixels).save(buffer, "PNG", optimize=True)
    caption = f"{view.plane() or 'axial'} slice {depth // 2 + 1} of {depth}" if depth > 1 else "image"
    return Picture(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", caption)


def draw_records(data: Path, records: Iterable[str]) -> dict[str, Picture]:
    """Record id → the first of its scans. A scan that cannot be read has no picture."""
    reader, pictures = ScanReader(data), {}
    for record in sorted(set(records), key=lambda record: reader.position.get(record, -1)):
        if record in reader.position:
            try:
                pictures[record] = draw_middle(reader.read(record, 0))
            except BenchError:
                continue
    return pictures
