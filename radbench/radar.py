"""Radar and reliability diagrams as SVG text: no library, no script, colours from the page's style."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import cos, pi, sin
from typing import Any

RADIUS, WIDTH, HEIGHT = 112.0, 500, 320
RINGS = (0.25, 0.5, 0.75, 1.0)
SIDE = 240.0  # of the reliability diagram
MARGIN = 46.0


@dataclass(frozen=True)
class Series:
    """One line of a radar.

    Args:
        name: in the legend.
        values: a share from 0 to 1 an axis, None where there is none.
        style: number of the line style, 0 the model that the page is about.
    """

    name: str
    values: Sequence[float | None]
    style: int


def draw_radar(title: str, axes: Sequence[str], series: Sequence[Series]) -> str:
    """A radar with rings at 25, 50, 75 and 100 %; a value that is missing is drawn as a gap in its line.

    Raises:
        ValueError: there are fewer than three axes, or a line has another number of values.
    """
    if len(axes) < 3 or any(len(line.values) != len(axes) for line in series):
        raise ValueError(f"radar {title!r}: {len(axes)} axes; a radar has three and more, and a value an axis.")
    parts = [f'<svg class="radar" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    for ring in RINGS:
        corners = " ".join(_point(place, len(axes), ring) for place in range(len(axes)))
        parts.append(f'<polygon class="ring" points="{corners}"/>')
    for place, axis in enumerate(axes):
        x, y = _point(place, len(axes), 1).split(",")
        parts.append(f'<line class="ring" x1="{WIDTH / 2:g}" y1="{HEIGHT / 2:g}" x2="{x}" y2="{y}"/>')
        parts.append(_label(axis, place, len(axes)))
    for line in reversed(series):
        parts += _line(line, len(axes))
    for ring in RINGS[1::2]:
        parts.append(f'<text class="scale" x="{WIDTH / 2 + 3:g}" y="{HEIGHT / 2 - ring * RADIUS + 11:g}">{ring:.0%}</text>')
    return "".join([*parts, "</svg>"])


def _line(line: Series, count: int) -> list[str]:
    known = [(place, value) for place, value in enumerate(line.values) if value is not None]
    points = [_point(place, count, min(max(value, 0.0), 1.0)) for place, value in known]
    name = f"<title>{escape(line.name)}</title>"
    if len(points) == count:
        return [
            f'<polygon class="line s{line.style}" points="{" ".join(points)}">{name}</polygon>',
            *_dots(points, line.style),
        ]
    runs = []
    for place in range(count):
        following = (place + 1) % count
        if line.values[place] is not None and line.values[following] is not None:
            ends = [_point(at, count, min(max(line.values[at] or 0.0, 0.0), 1.0)) for at in (place, following)]
            runs.append(f'<polyline class="line open s{line.style}" points="{" ".join(ends)}">{name}</polyline>')
    return [*runs, *_dots(points, line.style)]


def _dots(points: Sequence[str], style: int) -> list[str]:
    return [f'<circle class="dot s{style}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in (point.split(",") for point in points)]


def _point(place: int, count: int, share: float) -> str:
    angle = 2 * pi * place / count - pi / 2
    return f"{WIDTH / 2 + RADIUS * share * cos(angle):.1f},{HEIGHT / 2 + RADIUS * share * sin(angle):.1f}"


def _label(text: str, place: int, count: int) -> str:
    """An axis' name at its end, in up to two lines."""
    angle = 2 * pi * place / count - pi / 2
    x, y = WIDTH / 2 + (RADIUS + 12) * cos(angle), HEIGHT / 2 + (RADIUS + 14) * sin(angle)
    anchor = "middle" if abs(cos(angle)) < 0.2 else "start" if cos(angle) > 0 else "end"
    lines = text.split("\n")
    shift = -13 * (len(lines) - 1) if sin(angle) < -0.2 else -6 * (len(lines) - 1) if sin(angle) < 0.2 else 4
    spans = "".join(
        f'<tspan x="{x:.1f}" dy="{shift if number == 0 else 13}">{escape(line)}</tspan>' for number, line in enumerate(lines)
    )
    return f'<text class="axis" text-anchor="{anchor}" x="{x:.1f}" y="{y + 4:.1f}">{spans}</text>'


def draw_reliability(title: str, bins: Sequence[dict[str, Any]]) -> str:
    """Share of yes over the probability of yes, with Wilson's intervals; the area of a dot grows with its answers.

    Args:
        title: read out to those who do not see the diagram.
        bins: `vars` of `metrics.calibration.Bin`.
    """
    most = max(bin_["n"] for bin_ in bins)
    box = SIDE + 2 * MARGIN
    parts = [f'<svg class="reliability" viewBox="0 0 {box:g} {box:g}" role="img" aria-label="{escape(title, quote=True)}">']
    parts.append(f'<rect class="ring" x="{MARGIN:g}" y="{MARGIN:g}" width="{SIDE:g}" height="{SIDE:g}"/>')
    parts.append(f'<line class="perfect" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    for tick in (0.0, 0.5, 1.0):
        parts.append(f'<text class="scale" text-anchor="middle" x="{_x(tick)}" y="{MARGIN + SIDE + 16:g}">{tick:.0%}</text>')
        parts.append(
            f'<text class="scale" text-anchor="end" x="{MARGIN - 6:g}" y="{float(_y(tick)) + 4:g}">{tick:.0%}</text>'
        )
    middle = MARGIN + SIDE / 2
    parts.append(f'<text class="axis" text-anchor="middle" x="{middle:g}" y="{box - 8:g}">probability of yes</text>')
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(12 {middle:g}) rotate(-90)">share that is yes</text>'
    )
    for bin_ in bins:
        x, low, high = _x(bin_["probability"]), *map(_y, bin_["interval"])
        parts.append(f'<line class="whisker" x1="{x}" y1="{low}" x2="{x}" y2="{high}"/>')
        text = f"{bin_['n']} answers: probability {bin_['probability']:.0%}, yes {bin_['share']:.0%}"
        radius = 3 + 6 * (bin_["n"] / most) ** 0.5
        parts.append(
            f'<circle class="dot s0" cx="{x}" cy="{_y(bin_["share"])}" r="{radius:.1f}"><title>{text}</title></circle>'
        )
    return "".join([*parts, "</svg>"])


def _x(share: float) -> str:
    return f"{MARGIN + share * SIDE:.1f}"


def _y(share: float) -> str:
    return f"{MARGIN + (1 - share) * SIDE:.1f}"
