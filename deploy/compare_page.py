"""The paper's figure: reward against reward queries, a line a variant, as a page and as a drawing of its own.

Consumes curves, produces `compare.html` and `compare.svg`; waits for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.folder import write
from deploy.report import svg
from deploy.report.markup import NARROW, WIDE, figure, section, table, twice
from deploy.report.page import document
from deploy.report.scale import Scale, counted, number, padded
from deploy.report.style import CHART, FONTS, LIGHT

if TYPE_CHECKING:
    from deploy.compare import Curve

COLOURS: tuple[str, ...] = ("accent", "warm", "log", "score", "wait", "learn", "sample")
LABELS = 150  # pixels at the right for the variants' names
APART = 17  # pixels between two of them


def draw(name: str, about: str, curves: Sequence[Curve], folder: Path) -> Path:
    """Write compare.svg and compare.html and return the latter's path."""
    colours = dict(zip((curve.variant for curve in curves), COLOURS * len(curves), strict=False))
    style = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], CHART)
    alone = chart(curves, colours, WIDE).replace("<svg ", f'<svg font-family="{FONTS.replace(chr(34), "")}" ', 1)
    ground = f'<style>{style}</style><rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
    write(folder / "compare.svg", alone.replace("\n", "\n" + ground + "\n", 1))
    drawn = figure(twice(lambda width: chart(curves, colours, width)), caption(curves))
    sections = [section("Reward by reward queries", drawn), section("Numbers", numbers(curves))]
    page = document("comparison", name, f'<p class="statement">{escape(about)}</p>', sections, "")
    write(folder / "compare.html", page)
    return folder / "compare.html"


def chart(curves: Sequence[Curve], colours: dict[str, str], width: int, height: int = 400) -> str:
    """Every variant's mean over seeds as a line, and from its lowest to its highest seed as a band."""
    values = [value for curve in curves for seed in curve.rewards for value in seed]
    x = Scale(0, max(curve.queries[-1] for curve in curves), svg.LEFT, width - (LABELS if width > NARROW else 96))
    y = Scale(*padded(values), height - svg.BOTTOM, svg.TOP)
    bands = [_band(curve, x, y, colours[curve.variant]) for curve in curves]
    lines = [svg.curve(_points(curve, x, y), colours[curve.variant]) for curve in curves]
    axis = [svg.text(x(value), y.start + 22, label) for value, label in x.ticks(max(3, width // 130))]
    name = svg.text(svg.LEFT, y.start + 42, "reward queries (images scored)", "start")
    parts = [svg.y_axis(x, y, "mean reward"), *axis, name, *bands, *lines, *_labels(curves, x, y)]
    ends = "; ".join(f"{curve.variant} {number(_means(curve)[-1])}" for curve in curves)
    return svg.drawing(width, height, f"Line chart of reward by reward queries; at the end: {ends}", parts)


def _means(curve: Curve) -> list[float]:
    return [sum(column) / len(column) for column in zip(*curve.rewards, strict=True)]


def _points(curve: Curve, x: Scale, y: Scale) -> list[svg.Point]:
    return [(x(at), y(mean)) for at, mean in zip(curve.queries, _means(curve), strict=True)]


def _band(curve: Curve, x: Scale, y: Scale, colour: str) -> str:
    columns = list(zip(curve.queries, zip(*curve.rewards, strict=True), strict=True))
    above = [(x(at), y(max(column))) for at, column in columns]
    below = [(x(at), y(min(column))) for at, column in reversed(columns)]
    return f'<polygon class="f-{colour}" opacity="0.13" points="{svg.coordinates([*above, *below])}"/>'


def _labels(curves: Sequence[Curve], x: Scale, y: Scale) -> list[str]:
    """The variants' names beside their lines' ends, highest first, moved down where they would collide."""
    ends = sorted((y(_means(curve)[-1]) + 4, curve) for curve in curves)
    drawn, free = [], -float("inf")
    for height, curve in ends:
        free = max(height, free + APART)
        drawn.append(svg.text(x(curve.queries[-1]) + 8, free, curve.variant, "start", "strong"))
    return drawn


def caption(curves: Sequence[Curve]) -> str:
    """How to read the figure."""
    seeds = counted(len(curves[0].rewards), "seed")
    return (
        f"Line: mean over {seeds} of the mean reward of the images that a step drew; band: lowest to highest seed. The "
        "axis is the number of images scored, by which methods are compared (Black et al. 2023, figure 4)."
    )


def numbers(curves: Sequence[Curve]) -> str:
    """The last rewards, variant by variant."""
    last = max(curve.queries[0] for curve in curves)
    head = ["variant", f"mean reward of the last {last:,} queries", "by seed", "queries"]
    rows = []
    for curve in curves:
        ends = curve.ending(last)
        each = ", ".join(number(end) for end in ends)
        rows.append([escape(curve.variant), number(sum(ends) / len(ends)), each, f"{curve.queries[-1]:,}"])
    return table(head, rows)
