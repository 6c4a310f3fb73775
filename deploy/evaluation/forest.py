"""The chart of an evaluation: for every suite and sampler the change of one reward with its interval, beside zero.

Consumes entries of summary.json, produces SVG text; waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from deploy.evaluation.rounding import signed, span
from deploy.report import svg
from deploy.report.scale import Scale, padded

LINE, HEAD, GAP, TOP, AXIS = 21, 22, 13, 40, 30  # pixels: an interval, a suite's name over it, between suites, rims
LABELS, VALUES, SHORT = 190, 196, 62  # pixels: the names on a wide chart, the numbers on the right, on a narrow one

Row = tuple[float, Mapping[str, Any]]  # height of a line, and its trial


def forest(trials: Sequence[Mapping[str, Any]], name: str, unit: str, width: int) -> str:
    """All intervals of the reward `name`; a trial without a score of it has no line."""
    known = [trial for trial in trials if trial["rewards"].get(name)]
    wide, roomy = width > 800, width > 500
    rows, names, bottom = _layout(known, wide)
    ends = [end for trial in known for end in _ends(trial["rewards"][name])]
    x = Scale(*padded([0.0, *ends]), LABELS if wide else 8, width - (VALUES if roomy else SHORT))
    parts = [
        svg.text(0, 16, f"change of {name}" + (f", {unit}" if unit else ""), "start"),
        _legend(width),
        *(_tick(x(value), bottom, label, value == 0) for value, label in x.ticks(6 if roomy else 4)),
        *(svg.text(0, height, suite, "start", "strong") for height, suite in names),
        *(_line(x, height, trial, name, unit, roomy) for height, trial in rows),
    ]
    label = f"Change of {name} with 95 % intervals: " + "; ".join(_said(trial, name) for trial in known)
    return svg.drawing(width, bottom + AXIS, label, parts)


def _layout(trials: Sequence[Mapping[str, Any]], wide: bool) -> tuple[list[Row], list[tuple[float, str]], int]:
    """Where the lines and the suites' names are, and the plane's end: names are beside their lines or over them."""
    rows: list[Row] = []
    names: list[tuple[float, str]] = []
    height = TOP
    for suite in dict.fromkeys(trial["suite"] for trial in trials):
        lines = [trial for trial in trials if trial["suite"] == suite]
        height += GAP
        names.append((height + (len(lines) * LINE) / 2 + 4 if wide else height + 12, suite))
        height += 0 if wide else HEAD
        rows += [(height + (place + 0.5) * LINE, trial) for place, trial in enumerate(lines)]
        height += len(lines) * LINE
    return rows, names, height + GAP


def _ends(result: Mapping[str, Any]) -> list[float]:
    return [result["change"] if result[key] is None else result[key] for key in ("low", "high")]


def _legend(width: int) -> str:
    dot = f'<circle class="f-accent" cx="{width - 176}" cy="12" r="4"/>'
    names = svg.text(width - 166, 16, "training", "start") + svg.text(width - 80, 16, "deployment", "start")
    return dot + svg.diamond(width - 90, 12) + names


def _tick(x: float, bottom: float, label: str, zero: bool) -> str:
    line = f'<line class="{"mark" if zero else "grid"}" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>'
    return line + svg.text(x, bottom + 20, label)


def _line(x: Scale, y: float, trial: Mapping[str, Any], name: str, unit: str, roomy: bool) -> str:
    result, training = trial["rewards"][name], trial["sampler"] == "training"
    low, high = (x(end) for end in _ends(result))
    at = x(result["change"])
    mark = f'<circle class="f-accent" cx="{at}" cy="{y}" r="4"/>' if training else svg.diamond(at, y)
    whisker = f'<line class="line s-{"accent" if training else "warm"}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
    value = svg.text(x.stop + 12, y + 4, _value(result, roomy), "start")
    return f"<g>{whisker}{mark}{value}<title>{escape(f'{_said(trial, name)} {unit}'.strip())}</title></g>"


def _value(result: Mapping[str, Any], roomy: bool) -> str:
    return signed(result) + (f" ({span(result)})" if roomy and span(result) else "")


def _said(trial: Mapping[str, Any], name: str) -> str:
    result = trial["rewards"][name]
    return f"{trial['suite']}, {trial['sampler']} sampler: {_value(result, True)}"
