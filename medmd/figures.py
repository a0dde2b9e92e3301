"""Which figures of papers are charts, and which are put together of several panels. For figures of papers alone.

There is no classifier of radiology here: one that was trained on kinds of images threw away 86 to 98 % of radiological kinds
that it had not seen.
"""

import numpy as np
from PIL import Image

LONGEST_SIDE = 512
PAPER_WHITE = 245
CHART_WHITE = 0.55  # share of white pixels above which a figure is a chart or text
GUTTER = 0.008  # width of a gutter, as a share of the side that it divides
PANEL = 0.15  # and the least width of a panel


def is_chart(image: Image.Image) -> bool:
    """Whether most of a figure is the white of paper: charts, tables, drawings, text."""
    grey = _grey(image)
    return float((grey >= PAPER_WHITE).mean()) > CHART_WHITE


def is_compound(image: Image.Image) -> bool:
    """Whether a white gutter runs through the figure from edge to edge, with content on both sides of it."""
    grey = _grey(image)
    return any(_has_gutter(lines) for lines in (grey, grey.T))


def _grey(image: Image.Image) -> np.ndarray:
    small = image.convert("L")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def _has_gutter(lines: np.ndarray) -> bool:
    """A run of white rows with rows that are not white within reach on either side."""
    count = len(lines)
    blank = (lines >= PAPER_WHITE).mean(axis=1) > 0.995
    width = max(round(count * GUTTER), 1)
    edge = round(count * PANEL)
    content = np.flatnonzero(~blank)
    if not len(content):
        return False
    run = 0
    for row in range(content[0] + edge, content[-1] - edge + 1):
        run = run + 1 if blank[row] else 0
        if run >= width:
            return True
    return False
