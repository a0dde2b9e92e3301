"""The slices of a record's scans as the rating page shows them, drawn by the Space's viewer module."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np

from radfm.scan_radfm import to_radiological_view
from radfm.space import viewer

from ..pictures import opening_window
from ..records import HELD_OUT, ScanReader, read_light

PIXELS = 512


@dataclass(frozen=True)
class Slice:
    """One slice: its PNG as a `data:` address, what it is, and the patient's sides at its edges (may be empty)."""

    uri: str
    caption: str
    edges: tuple[tuple[str, str], ...] = ()

    def html(self) -> str:
        """The image with the letters of its edges."""
        letters = "".join(f'<span class="edge {edge}">{escape(letter)}</span>' for edge, letter in self.edges)
        image = f'<img src="{self.uri}" alt="{escape(self.caption, quote=True)}">'
        return f'<figure class="slice">{image}{letters}<figcaption>{escape(self.caption)}</figcaption></figure>'


class SliceReader:
    """The slices of records; those of the last few are kept.

    Args:
        data: the data set.
        records: the ids that may be asked for.
    """

    def __init__(self, data: Path, records: Iterable[str]):
        wanted = set(records)
        self._counts = {record.id: len(record.shapes) for record in read_light(data, *HELD_OUT) if record.id in wanted}
        self._reader = ScanReader(data)
        self.read = lru_cache(maxsize=4)(self._read)

    def _read(self, record: str) -> Sequence[Slice]:
        """All scans one after the other, at most 96 evenly chosen slices each.

        Raises:
            BenchError: a scan cannot be read.
        """
        count, slices = self._counts.get(record, 0), []
        for index in range(count):
            view = to_radiological_view(self._reader.read(record, index))
            depth = view.voxels.shape[-1]
            window, plane = opening_window(view), view.plane() or "axial"
            edges = tuple(view.edge_letters().items())
            for place in np.unique(np.linspace(0, depth - 1, min(depth, viewer.SLICES)).round().astype(int)):
                buffer = io.BytesIO()
                viewer.draw_slice(view, int(place), window, PIXELS).save(buffer, "PNG")
                uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
                parts = [f"scan {index + 1} of {count}"] if count > 1 else []
                parts.append(f"{plane} slice {place + 1} of {depth}" if depth > 1 else "image")
                slices.append(Slice(uri, ", ".join(parts), edges))
        return slices
