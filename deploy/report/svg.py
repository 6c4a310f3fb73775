"""Pieces of a drawing: SVG by hand, with no library and no script.

Consumes: scales, points and texts. Produces: SVG text that names its colours by class (see style.py).
"""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from deploy.report.read import Row
from deploy.report.scale import Scale

LEFT, TOP, BOTTOM = 62, 34, 50  # pixels around the plane of a chart

Point = tuple[float, float]


def drawing(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    """An image of the parts, in order; the label is read to those who do not see it."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} role="img" aria-label="{escape(label)}">'
    return "\n".join([head, *filter(None, parts), "</svg>"])


def text(x: float, y: float, content: str, anchor: str = "middle", kind: str = "") -> str:
    """A line of text that starts, ends or has its middle at x."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def level(x: Scale, y: float, kind: str = "grid") -> str:
    """A horizontal line across the plane."""
    return f'<line class="{kind}" x1="{x.start}" x2="{x.stop}" y1="{y}" y2="{y}"/>'


def curve(points: Sequence[Point], colour: str) -> str:
    """A line through the points; a single point is a dot."""
    if len(points) == 1:
        return f'<circle class="f-{colour}" cx="{points[0][0]}" cy="{points[0][1]}" r="3.5"/>'
    return f'<polyline class="line s-{colour}" points="{coordinates(points)}"/>'


def coordinates(points: Sequence[Point]) -> str:
    """Points as an attribute."""
    return " ".join(f"{x},{y}" for x, y in points)


def diamond(x: float, y: float) -> str:
    """A mark that is no dot."""
    return f'<path class="f-warm" d="M{x},{y - 5} l5,5 l-5,5 l-5,-5 z"/>'


def y_axis(x: Scale, y: Scale, name: str) -> str:
    """Horizontal grid lines with their values, and what they measure above them."""
    rows = [level(x, y(v)) + text(x.start - 8, y(v) + 4, label, "end") for v, label in y.ticks()]
    return "\n".join([*rows, text(0, TOP - 20, name, "start")])


def step_axis(x: Scale, bottom: float, rows: Sequence[Row], most: int, *keys: str) -> str:
    """Ticks at round steps, placed by the first key, with a line of numbers for each key."""
    marks = []
    for position, key in enumerate(keys):
        height = bottom + 22 + 17 * position
        marks.append(text(0, height, key.removeprefix("reward_"), "start"))
        marks += [text(x(row[keys[0]]), height, f"{row[key]:,}") for row in _round_steps(rows, most)]
    return "\n".join(marks)


def _round_steps(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows whose steps are multiples of a round number; the first row where there is none."""
    strides = (m * 10**power for power in range(9) for m in (1, 2, 5))
    choices = ([row for row in rows if row["step"] % stride == 0] for stride in strides)
    return next(chosen for chosen in choices if len(chosen) <= most) or [rows[0]]


def hits(x: Scale, y: Scale, points: Sequence[Point], texts: Sequence[str]) -> str:
    """Invisible full-height strips, one a point, that show the point and its text under the mouse."""
    edges = [(a[0] + b[0]) / 2 for a, b in pairwise(points)]
    lefts, rights = [x.start, *edges], [*edges, x.stop]
    box = f'y="{y.stop}" height="{y.start - y.stop}"'
    return "\n".join(
        f'<g class="spot"><rect class="hit" x="{left:.1f}" width="{right - left:.1f}" {box}/>'
        f'<circle class="f-accent dot" cx="{at[0]}" cy="{at[1]}" r="4"/><title>{escape(hover)}</title></g>'
        for left, right, at, hover in zip(lefts, rights, points, texts, strict=True)
    )
