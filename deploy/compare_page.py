"""The paper's figure: reward against reward queries, a line a variant, as a page and as a drawing of its own.

The same against wall time, which is what sampling ahead is for. Consumes curves, produces `compare.html`, `compare.svg`
and `compare-seconds.svg`; waits for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from deploy.folder import write
from deploy.report import svg
from deploy.report.markup import NARROW, WIDE, figure, section, table, twice
from deploy.report.page import document
from deploy.report.scale import Scale, counted, duration, number, padded
from deploy.report.style import CHART, FONTS, LIGHT

COLOURS: tuple[str, ...] = ("accent", "warm", "log", "score", "wait", "learn", "sample")
LABELS = 150  # pixels at the right for the variants' names
APART = 17  # pixels between two of them
TALL = 170  # pixels of one of many panels, from title to title
AXES = {"queries": "reward queries (images scored)", "seconds": "seconds of wall time"}  # of a curve, to draw along


@dataclass(frozen=True)
class Curve:
    """One variant: reward queries (Q,) and, for each seed, the mean reward of the images drawn up to there (S, Q).

    seconds: wall time up to there (Q,), mean over the seeds
    """

    variant: str
    queries: list[int]
    rewards: list[list[float]]
    seconds: list[float]

    def ending(self, last: int) -> list[float]:
        """Each seed's mean reward over the last `last` queries."""
        size = self.queries[0]
        count = max(1, round(last / size))
        return [sum(values[-count:]) / count for values in self.rewards]


def draw(name: str, about: str, curves: Sequence[Curve], folder: Path) -> Path:
    """Write the drawings and compare.html and return the latter's path."""
    picture = chart if len(curves) <= len(COLOURS) else panels
    write(folder / "compare.svg", alone(picture(curves, WIDE)))
    write(folder / "compare-seconds.svg", alone(picture(curves, WIDE, "seconds")))
    queries = figure(twice(lambda width: picture(curves, width)), caption(curves))
    seconds = figure(twice(lambda width: picture(curves, width, "seconds")), SECONDS)
    sections = [
        section("Reward by reward queries", queries), section("Reward by wall time", seconds),
        section("Numbers", numbers(curves)),
    ]
    page = document("comparison", name, f'<p class="statement">{escape(about)}</p>', sections, "")
    write(folder / "compare.html", page)
    return folder / "compare.html"


SECONDS = (
    "The same means against the wall time of a run, mean over its seeds; it says something only of runs that were made "
    "one after the other on an otherwise idle machine."
)


def alone(drawing: str) -> str:
    """A drawing that stands without the page: its own fonts, colours and ground."""
    style = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], CHART)
    ground = f'<style>{style}</style><rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
    named = drawing.replace("<svg ", f'<svg font-family="{FONTS.replace(chr(34), "")}" ', 1)
    return named.replace("\n", "\n" + ground + "\n", 1)


def chart(curves: Sequence[Curve], width: int, along: str = "queries", height: int = 400) -> str:
    """Every variant's mean over seeds as a line, and from its lowest to its highest seed as a band."""
    colours = dict(zip((curve.variant for curve in curves), COLOURS, strict=False))
    right = width - (LABELS if width > NARROW else 96)
    x = Scale(0, _longest(curves, along), svg.LEFT, right)
    y = Scale(*_rewards(curves), height - svg.BOTTOM, svg.TOP)
    bands = [_band(curve, along, x, y, colours[curve.variant]) for curve in curves]
    lines = [svg.curve(_points(curve, along, x, y), colours[curve.variant]) for curve in curves]
    axis = [svg.text(x(value), y.start + 22, label) for value, label in x.ticks(max(3, width // 130))]
    name = svg.text(svg.LEFT, y.start + 42, AXES[along], "start")
    parts = [svg.y_axis(x, y, "mean reward"), *axis, name, *bands, *lines, *_labels(curves, along, colours, x, y)]
    return svg.drawing(width, height, _told(curves, along), parts)


def panels(curves: Sequence[Curve], width: int, along: str = "queries") -> str:
    """More variants than colours: a small chart each, with the means of all others in grey behind it."""
    columns = 2 if width <= NARROW else 4
    wide, rows = (width - svg.LEFT) // columns, -(-len(curves) // columns)
    parts = [svg.text(0, svg.TOP - 20, "mean reward", "start")]
    for position, own in enumerate(curves):
        row, column = divmod(position, columns)
        left, top = svg.LEFT + column * wide, svg.TOP + row * TALL
        x = Scale(0, _longest(curves, along), left, left + wide - 34)
        y = Scale(*_rewards(curves), top + TALL - 26, top + 22)
        parts += [svg.level(x, y(value)) for value, _ in y.ticks(3)]
        if column == 0:
            parts += [svg.text(left - 8, y(value) + 4, label, "end") for value, label in y.ticks(3)]
        if position + columns >= len(curves):
            parts += [svg.text(x(value), y.start + 20, label) for value, label in x.ticks(2)]
        others = [svg.curve(_points(curve, along, x, y), "muted") for curve in curves if curve is not own]
        parts += ['<g opacity="0.25">', *others, "</g>", _band(own, along, x, y, COLOURS[0])]
        parts.append(svg.curve(_points(own, along, x, y), COLOURS[0]))
        parts.append(svg.text(left, top + 10, own.variant, "start", "strong"))
    height = svg.TOP + rows * TALL + 30
    parts.append(svg.text(svg.LEFT, height - 8, AXES[along], "start"))
    return svg.drawing(width, height, _told(curves, along), parts)


def _longest(curves: Sequence[Curve], along: str) -> float:
    return max(getattr(curve, along)[-1] for curve in curves)


def _rewards(curves: Sequence[Curve]) -> tuple[float, float]:
    """The range of all rewards that are drawn."""
    return padded([value for curve in curves for seed in curve.rewards for value in seed])


def _told(curves: Sequence[Curve], along: str) -> str:
    """The figure in words, for those who do not see it."""
    ends = "; ".join(f"{curve.variant} {number(_means(curve)[-1])}" for curve in curves)
    return f"Line chart of reward by {AXES[along]}; at the end: {ends}"


def _means(curve: Curve) -> list[float]:
    return [sum(column) / len(column) for column in zip(*curve.rewards, strict=True)]


def _points(curve: Curve, along: str, x: Scale, y: Scale) -> list[svg.Point]:
    return [(x(at), y(mean)) for at, mean in zip(getattr(curve, along), _means(curve), strict=True)]


def _band(curve: Curve, along: str, x: Scale, y: Scale, colour: str) -> str:
    columns = list(zip(getattr(curve, along), zip(*curve.rewards, strict=True), strict=True))
    above = [(x(at), y(max(column))) for at, column in columns]
    below = [(x(at), y(min(column))) for at, column in reversed(columns)]
    return f'<polygon class="f-{colour}" opacity="0.13" points="{svg.coordinates([*above, *below])}"/>'


def _labels(curves: Sequence[Curve], along: str, colours: dict[str, str], x: Scale, y: Scale) -> list[str]:
    """The variants' names beside their lines' ends, in their colours."""
    ends = sorted(((y(_means(curve)[-1]) + 4, curve) for curve in curves), key=lambda end: end[0])
    heights = spread([height for height, _ in ends], y.start)
    return [
        svg.text(x(getattr(curve, along)[-1]) + 8, height, curve.variant, "start", f"strong f-{colours[curve.variant]}")
        for height, (_, curve) in zip(heights, ends, strict=True)
    ]


def spread(heights: Sequence[float], lowest: float) -> list[float]:
    """Ascending heights moved apart: down where they would collide, up again where that left the chart."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + APART) if placed else height)
    for position in reversed(range(len(placed))):
        placed[position] = min(placed[position], lowest)
        lowest = placed[position] - APART
    return placed


def caption(curves: Sequence[Curve]) -> str:
    """How to read the figure."""
    seeds = counted(len(curves[0].rewards), "seed")
    others = "" if len(curves) <= len(COLOURS) else "; grey: the other variants"
    return (
        f"Line: mean over {seeds} of the mean reward of the images that a step drew; band: lowest to highest "
        f"seed{others}. The axis is the number of images scored, by which methods are compared (Black et al. 2023, "
        "figure 4)."
    )


def numbers(curves: Sequence[Curve]) -> str:
    """The last rewards, variant by variant."""
    last = max(curve.queries[0] for curve in curves)
    head = ["variant", f"mean reward of the last {last:,} queries", "by seed", "queries", "wall time"]
    rows = []
    for curve in curves:
        ends = curve.ending(last)
        each = ", ".join(number(end) for end in ends)
        spent = [f"{curve.queries[-1]:,}", duration(curve.seconds[-1])]
        rows.append([escape(curve.variant), number(sum(ends) / len(ends)), each, *spent])
    return table(head, rows)
