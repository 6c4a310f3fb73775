"""Charts of a run: a run folder's numbers and images drawn as SVG by hand, with no library and no script.

Consumes: a run folder (`read_run`): config.toml, run.json, metrics.jsonl, images/, masked.jsonl, result.json.
Produces: SVG text for the report, and one PNG for the README (`picture`). Waits for nothing.

Drawings name their colours as CSS variables, so the same SVG serves a light page, a dark page and the PNG.
"""

import base64
import io
import json
import math
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

LIGHT = {
    "paper": "#fbfaf6", "card": "#f3f1ea", "ink": "#1d1c1a", "muted": "#66635c", "rule": "#dedacf",
    "accent": "#1d5f91", "warm": "#a9480c", "sample": "#2a6a9b", "score": "#d79a2b", "learn": "#b4513a",
    "wait": "#b3aea2", "log": "#6d9362", "other": "#8474a8",
}  # fmt: skip
DARK = {
    "paper": "#161719", "card": "#1f2124", "ink": "#e9e7e2", "muted": "#a5a29b", "rule": "#36383c",
    "accent": "#78b7e6", "warm": "#ee9c5f", "sample": "#4f94c8", "score": "#d9a441", "learn": "#cf6a50",
    "wait": "#6e6c67", "log": "#7fa873", "other": "#9c8cc0",
}  # fmt: skip
PHASES = ("sample", "score", "learn", "wait", "log")

FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, system-ui, sans-serif"
STYLE = f"""
.chart text {{ font-family: {FONTS}; font-size: 13px; fill: var(--muted); }}
.chart .strong {{ fill: var(--ink); font-weight: 600; }}
.chart .grid {{ stroke: var(--rule); stroke-width: 1; }}
.chart .mark {{ stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 4; }}
.chart .line {{ fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }}
.chart .s-accent {{ stroke: var(--accent); }}
.chart .s-warm {{ stroke: var(--warm); }}
.chart .f-accent {{ fill: var(--accent); }}
.chart .f-warm {{ fill: var(--warm); }}
.chart .band {{ fill: var(--accent); opacity: 0.15; }}
.chart .hit {{ fill: transparent; }}
""" + "".join(f".chart .f-{name} {{ fill: var(--{name}); }}\n" for name in (*PHASES, "other"))

Row = Mapping[str, Any]
Point = tuple[float, float]
T = TypeVar("T")


# ---- the run folder ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a run folder held when it was read; `unread` names the files and lines that were cut short."""

    folder: Path
    config_text: str
    config: dict[str, Any]
    facts: dict[str, Any]
    rows: list[Row]
    grids: dict[int, Image.Image]
    layout: dict[str, Any]
    scores: dict[int, dict[str, list[float | None]]]
    masked: list[Row]
    result: dict[str, Any] | None
    unread: list[str]

    @property
    def name(self) -> str:
        """The run's own name, else its folder's."""
        return str(self.config.get("name") or self.folder.resolve().name)

    @property
    def prompts(self) -> list[str]:
        """The fixed prompts, one a tile."""
        return [str(prompt) for prompt in self.layout.get("prompts", [])]

    @property
    def unit(self) -> str:
        """`kB` where the one reward is a JPEG size, unweighted; else a bare number."""
        tables = self.config.get("rewards", {})
        ((name, table),) = tables.items() if len(tables) == 1 else [("", {})]
        kind = str(table.get("kind", name)).lower()
        return "kB" if re.search("jpe?g|compress", kind) and table.get("weight", 1) == 1 else ""

    @property
    def scored(self) -> list[Row]:
        """The steps that have a mean reward: all, but for those that lost every image."""
        return [row for row in self.rows if row.get("reward_mean") is not None]

    def tiles(self, step: int) -> list[Image.Image]:
        """Cut the grid of one step into its tiles, in the order of `prompts`."""
        height, width = self.layout["tile"]
        corners = [divmod(i, self.layout["columns"]) for i in range(len(self.prompts))]
        boxes = [(c * width, r * height, (c + 1) * width, (r + 1) * height) for r, c in corners]
        return [self.grids[step].crop(box) for box in boxes]

    def tile_rewards(self, step: int) -> list[dict[str, float]]:
        """Per tile, the rewards known for it at one step: {name: value}."""
        known = self.scores.get(step, {})
        return [
            {name: values[i] for name, values in known.items() if i < len(values) and values[i] is not None}
            for i in range(len(self.prompts))
        ]


def read_run(folder: Path) -> Run:
    """Read a run folder as it stands: finished, running or stopped in the middle of a line."""
    if not (folder / "config.toml").exists() and not (folder / "metrics.jsonl").exists():
        raise FileNotFoundError(
            f"{folder} is not a run folder: it has neither config.toml nor metrics.jsonl. "
            "A report is made from a folder that a run wrote; pass that folder."
        )
    unread: list[str] = []
    text = (folder / "config.toml").read_text() if (folder / "config.toml").exists() else ""
    layout = _read_json(folder / "images/grid.json", unread) or {}
    scores = _read_json(folder / "images/scores.json", unread) or {}
    return Run(
        folder=folder,
        config_text=text,
        config=tomllib.loads(text),
        facts=_read_json(folder / "run.json", unread) or {},
        rows=_by_step(_read_lines(folder / "metrics.jsonl", unread)),
        grids=_read_grids(folder / "images", unread) if layout.get("prompts") else {},
        layout=layout,
        scores={int(step): entry["rewards"] for step, entry in scores.items()},
        masked=_read_lines(folder / "masked.jsonl", unread),
        result=_read_json(folder / "result.json", unread),
        unread=unread,
    )


def _read_json(path: Path, unread: list[str]) -> dict[str, Any] | None:
    """The object in a file; None where it is missing, or cut short by a crash (then named in `unread`)."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError:
        unread.append(path.name)
        return None


def _read_lines(path: Path, unread: list[str]) -> list[Row]:
    """The objects of a JSON-lines file, without the lines that a crash cut short."""
    rows = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for position, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            unread.append(f"{path.name}, line {position}")
    return rows


def _by_step(rows: Sequence[Row]) -> list[Row]:
    """One row a step, in order; a resumed run logs some steps again, and then the later row counts."""
    latest = {row["step"]: row for row in rows}
    return [latest[step] for step in sorted(latest)]


def _read_grids(folder: Path, unread: list[str]) -> dict[int, Image.Image]:
    """The image grids by step, those of the first and last step and at most six between."""
    found = sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdigit())
    grids = {}
    for step, path in thin(found, 8):
        try:
            grids[step] = Image.open(path).convert("RGB")
        except (UnidentifiedImageError, OSError):
            unread.append(path.name)
    return grids


def thin(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items: every k-th from the first on, and the last."""
    stride = max(1, math.ceil((len(items) - 1) / (most - 1)))
    return [*items[:-1:stride], *items[-1:]]


# ---- numbers and scales -----------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """A number for people: some significant digits, thousands set off, powers of ten where it is tiny."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 < power < 6:
        text = f"{value:,.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{value / 10**power:.{digits - 1}f}".rstrip("0").rstrip(".") + f"×10{_raised(power)}"
    return text.replace("-", "−")


def counted(count: int, noun: str) -> str:
    """`1 step`, `1,280 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


@dataclass(frozen=True)
class Scale:
    """Maps low..high to pixels start..stop, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 1)

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Round values on the scale with their labels: multiples of 1, 2 or 5, or powers of ten."""
        return _decades(self.low, self.high, about) if self.log else _multiples(self.low, self.high, about)


def _multiples(low: float, high: float, about: int) -> list[tuple[float, str]]:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.8)
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    if max(abs(low), abs(high)) < 1e-3:
        return [(v, number(v, 2)) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(v, f"{v:,.{decimals}f}".replace("-", "−")) for v in values]


def _decades(low: float, high: float, about: int) -> list[tuple[float, str]]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    stride = max(1, math.ceil((last - first) / about))
    return [(10.0**power, f"10{_raised(power)}") for power in range(first, last + 1, stride)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of the values with a margin on both sides, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


# ---- pieces of a drawing ----------------------------------------------------------------------------

LEFT, TOP, BOTTOM = 62, 34, 46


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(part for part in parts if part)
        + "\n</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _level(x: Scale, y: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{x.start}" x2="{x.stop}" y1="{y}" y2="{y}"/>'


def _line(points: Sequence[Point], colour: str) -> str:
    """A line through the points; a single point is a dot."""
    if len(points) == 1:
        return f'<circle class="f-{colour}" cx="{points[0][0]}" cy="{points[0][1]}" r="3.5"/>'
    return f'<polyline class="line s-{colour}" points="{_coordinates(points)}"/>'


def _coordinates(points: Sequence[Point]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _y_axis(x: Scale, y: Scale, name: str) -> str:
    """Horizontal grid lines with their values, and what they measure above them."""
    rows = [_level(x, y(v)) + _text(x.start - 8, y(v) + 4, label, "end") for v, label in y.ticks()]
    return "\n".join([*rows, _text(0, TOP - 20, name, "start")])


def _step_axis(x: Scale, bottom: float, rows: Sequence[Row], most: int, *keys: str) -> str:
    """Ticks at round steps, placed by the first key, with a line of numbers for each key."""
    marks = []
    for line, key in enumerate(keys):
        height = bottom + 18 + 17 * line
        marks.append(_text(0, height, key.removeprefix("reward_"), "start"))
        marks += [_text(x(row[keys[0]]), height, f"{row[key]:,}") for row in _round_steps(rows, most)]
    return "\n".join(marks)


def _round_steps(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows whose steps are multiples of a round number; the first row where there is none."""
    for stride in (m * 10**power for power in range(9) for m in (1, 2, 5)):
        chosen = [row for row in rows if row["step"] % stride == 0]
        if len(chosen) <= most:
            return chosen or [rows[0]]
    return [rows[0]]


def _hits(x: Scale, y: Scale, points: Sequence[Point], texts: Sequence[str]) -> str:
    """Invisible full-height strips, one a point, that show the point and its text under the mouse."""
    edges = [(a[0] + b[0]) / 2 for a, b in pairwise(points)]
    lefts, rights = [x.start, *edges], [*edges, x.stop]
    box = f'y="{y.stop}" height="{y.start - y.stop}"'
    return "\n".join(
        f'<g class="spot"><rect class="hit" x="{left:.1f}" width="{right - left:.1f}" {box}/>'
        f'<circle class="f-accent dot" cx="{at[0]}" cy="{at[1]}" r="4"/><title>{escape(text)}</title></g>'
        for left, right, at, text in zip(lefts, rights, points, texts, strict=True)
    )


# ---- the charts -------------------------------------------------------------------------------------


def reward_chart(run: Run, width: int = 1100, height: int = 340) -> str:
    """Mean reward of each step's images, with one standard deviation around it, by images scored so far."""
    rows = thin(run.scored, 300)
    fixed = fixed_means(run)
    means = [row["reward_mean"] for row in rows]
    spread = [row["reward_mean"] + side * row["reward_std"] for row in rows for side in (-1, 1)]
    x = Scale(0, rows[-1]["reward_queries"], LEFT, width - 64)
    y = Scale(*padded([*spread, *(mean for _, mean in fixed)]), height - BOTTOM, TOP)
    points = [(x(row["reward_queries"]), y(row["reward_mean"])) for row in rows]
    parts = [
        _y_axis(x, y, "mean reward" + (f", {run.unit}" if run.unit else "")),
        _step_axis(x, y.start, rows, width // 95, "reward_queries", "step"),
        _band(rows, x, y),
        _level(x, points[0][1], "mark"),
        _legend(x.stop) if fixed else "",
        _line(points, "accent"),
        *(_diamond(x(queries), y(mean)) for queries, mean in fixed),
        _end_labels(x, points[0][1], points[-1][1], means),
        _hits(x, y, points, [_reward_hover(row, run.unit) for row in rows]),
    ]
    return _svg(width, height, _reward_label(rows), parts)


def fixed_means(run: Run) -> list[Point]:
    """Mean reward of the fixed images at each logged step, by queries, where one reward alone is learned."""
    queries = {0: 0, **{row["step"]: row["reward_queries"] for row in run.rows}}
    found = []
    for step, rewards in sorted(run.scores.items()):
        values = [v for v in next(iter(rewards.values()), []) if v is not None]
        if len(rewards) == 1 and len(run.config.get("rewards", {})) <= 1 and values and step in queries:
            found.append((queries[step], sum(values) / len(values)))
    return found


def _band(rows: Sequence[Row], x: Scale, y: Scale) -> str:
    """The area of mean ± standard deviation; a bar where there is one step only."""
    wide = [(row, 0) for row in rows] if len(rows) > 1 else [(rows[0], -6), (rows[0], 6)]
    upper, lower = (
        [(x(row["reward_queries"]) + d, y(row["reward_mean"] + side * row["reward_std"])) for row, d in wide]
        for side in (1, -1)
    )
    return f'<polygon class="band" points="{_coordinates([*upper, *reversed(lower)])}"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path class="f-warm" d="M{x},{y - 5} l5,5 l-5,5 l-5,-5 z"/>'


def _legend(right: float) -> str:
    return _diamond(right - 130, TOP - 24) + _text(right, TOP - 20, "fixed prompts, noise", "end")


def _end_labels(x: Scale, first: float, last: float, means: Sequence[float]) -> str:
    """The last mean beside its point, and the first beside the dotted line, unless they would collide."""
    labels = [_text(x.stop + 10, last + 4, number(means[-1]), "start", "strong")]
    if abs(first - last) > 16:
        labels.append(_text(x.stop + 10, first + 4, number(means[0]), "start"))
    return "\n".join(labels)


def _reward_hover(row: Row, unit: str) -> str:
    mean, spread = number(row["reward_mean"]), number(row["reward_std"])
    return f"step {row['step']:,} · {row['reward_queries']:,} queries · {mean} ± {spread} {unit}".strip()


def _reward_label(rows: Sequence[Row]) -> str:
    ends = [f"{number(row['reward_mean'])} at step {row['step']}" for row in (rows[0], rows[-1])]
    return "Line chart: mean reward, from " + " to ".join(ends)


def lines_chart(
    rows: Sequence[Row],
    series: Mapping[str, Callable[[Row], float | None]],
    name: str,
    marks: Mapping[str, float] | None = None,
    width: int = 540,
    height: int = 240,
) -> str:
    """One or two series by step (first in the accent colour, second in the warm one) with dotted marks."""
    rows = thin(rows, 300)
    values = {label: _known(rows, of) for label, of in series.items()}
    marks = marks or {}
    levels = [*marks.values(), *(v for points in values.values() for _, v in points)]
    x = Scale(rows[0]["step"] - 0.5, rows[-1]["step"] + 0.5, LEFT, width - (66 if marks else 16))
    y = Scale(*padded(levels), height - 30, TOP)
    drawn = [[(x(step), y(v)) for step, v in points] for points in values.values()]
    label, leading = next(iter(values.items()))
    parts = [
        _y_axis(x, y, name),
        _step_axis(x, y.start, rows, width // 80, "step"),
        *(_level(x, y(v), "mark") + _text(x.stop + 8, y(v) + 4, mark, "start") for mark, v in marks.items()),
        *(_line(points, colour) for points, colour in zip(drawn, ("accent", "warm"), strict=False)),
        _hits(x, y, drawn[0], [f"step {step:,} · {label} {number(v)}" for step, v in leading]),
    ]
    ends = "; ".join(f"{label} from {number(p[0][1])} to {number(p[-1][1])}" for label, p in values.items())
    return _svg(width, height, f"Line chart by step: {ends}", parts)


def _known(rows: Sequence[Row], of: Callable[[Row], float | None]) -> list[Point]:
    found = [(row["step"], of(row)) for row in rows]
    return [(step, value) for step, value in found if value is not None]


def noise_chart(rows: Sequence[Row], clip: float | None, width: int = 1100, height: int = 300) -> str:
    """|Δ log-prob| of unchanged weights by timestep: smallest to largest over the steps, a dot near the mean.

    A logarithmic axis cannot hold an exact zero, so zeros lie on a lane of their own under it.
    """
    deltas = delta_by_timestep(rows)
    positive = [d for values in deltas.values() for d in values if d > 0]
    limits = [*positive, clip] if clip else positive or [1.0]
    x = Scale(max(deltas) + 20, min(deltas) - 20, LEFT, width - 16)
    y = Scale(min(limits) / (5 if positive else 1e4), max(limits) * 4, height - BOTTOM - 26, TOP, log=True)
    lane = height - BOTTOM
    parts = [
        _y_axis(x, y, "mean |Δ log-prob|"),
        _level(x, lane) + _text(x.start - 8, lane + 4, "0", "end"),
        *_timestep_labels(x, lane, sorted(deltas, reverse=True), width // 75),
        _clip_level(x, y, clip) if clip else "",
        *(_whisker(x(t), [y(d) if d else lane for d in values], values, t) for t, values in deltas.items()),
    ]
    worst = number(max(positive, default=0.0), 2)
    return _svg(width, height, f"Mean |Δ log-prob| by timestep; the largest is {worst}", parts)


def _timestep_labels(x: Scale, bottom: float, timesteps: Sequence[int], most: int) -> list[str]:
    """Timesteps at one stride, so that the labels stand evenly."""
    shown = timesteps[:: max(1, math.ceil(len(timesteps) / most))]
    return [_text(0, bottom + 22, "timestep", "start"), *(_text(x(t), bottom + 22, str(t)) for t in shown)]


def _clip_level(x: Scale, y: Scale, clip: float) -> str:
    label = f"clip range {number(clip, 2)}"
    return _level(x, y(clip), "mark") + _text(x.stop, y(clip) - 6, label, "end", "strong")


def delta_by_timestep(rows: Sequence[Row]) -> dict[int, list[float]]:
    """{timestep: its |Δ log-prob| in every step that trained it}."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for timestep, delta in row.get("log_prob_delta_by_timestep", {}).items():
            found.setdefault(int(timestep), []).append(abs(delta))
    return found


def _whisker(x: float, heights: Sequence[float], values: Sequence[float], timestep: int) -> str:
    mean = sum(values) / len(values)
    nearest = min(range(len(values)), key=lambda i: abs(values[i] - mean))
    hover = f"t = {timestep} · mean {number(mean)} · largest {number(max(values))} over {len(values)} steps"
    ends = f'x1="{x}" x2="{x}" y1="{min(heights)}" y2="{max(heights)}"'
    return (
        f'<g><line class="line s-accent" {ends} opacity="0.4"/>'
        f'<circle class="f-accent" cx="{x}" cy="{heights[nearest]}" r="3.5"/><title>{hover}</title></g>'
    )


def phases(rows: Sequence[Row]) -> list[str]:
    """The phases that took time, the known ones first, without the total."""
    present = {name for row in rows for name in row.get("seconds", {}) if name != "total"}
    return [name for name in PHASES if name in present] + sorted(present.difference(PHASES))


def time_chart(rows: Sequence[Row], width: int = 1100, height: int = 260) -> str:
    """Seconds of each step, stacked by phase."""
    rows, names = thin(rows, 120), phases(rows)
    sums = [sum(row.get("seconds", {}).get(name, 0) for name in names) for row in rows]
    x = Scale(0, len(rows), LEFT, width - 16)
    y = Scale(0, max(sums) * 1.08 or 1.0, height - 30, TOP)
    places = [{"step": row["step"], "middle": x(i + 0.5)} for i, row in enumerate(rows)]
    marked = _round_steps(places, width // 80)
    ticks = [_text(place["middle"], y.start + 18, f"{place['step']:,}") for place in marked]
    bars = [_bar(row, names, x(i), x(i + 1), y) for i, row in enumerate(rows)]
    label = f"Stacked bars: seconds per step by phase; the mean step took {number(sum(sums) / len(sums))} s"
    axes = [_y_axis(x, y, "seconds per step"), _text(0, y.start + 18, "step", "start"), *ticks]
    return _svg(width, height, label, [*axes, *bars])


def _bar(row: Row, names: Sequence[str], left: float, right: float, y: Scale) -> str:
    """One step's bar, from the first phase at the bottom upwards."""
    gap = min(6.0, (right - left) * 0.18)
    width = min(right - left - gap, 56)
    at, base, parts = (left + right - width) / 2, 0.0, []
    for name in names:
        seconds = row.get("seconds", {}).get(name, 0)
        top, bottom = y(base + seconds), y(base)
        box = f'x="{at:.1f}" y="{top}" width="{width:.1f}" height="{max(0.0, bottom - top):.1f}"'
        parts.append(f'<rect class="f-{name if name in PHASES else "other"}" {box}/>')
        base += seconds
    hover = ", ".join(f"{name} {number(row.get('seconds', {}).get(name, 0))} s" for name in names)
    return f"<g>{''.join(parts)}<title>step {row['step']:,}: {escape(hover)}</title></g>"


# ---- images -----------------------------------------------------------------------------------------


def data_url(image: Image.Image, most: int = 288) -> str:
    """An image as a data URL: small drawings without loss, larger ones shrunk to `most` pixels a side."""
    small = max(image.size) <= 128
    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=small, quality=80 if small else 88, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


# ---- the README picture -----------------------------------------------------------------------------

SIDE, MARGIN, HEADING = 142, 44, 46  # pixels of the poster
CHART_SCALE = 1.7  # its chart is drawn small and set large: the text is read on a picture half as wide


def picture(run: Path, path: Path, count: int = 8) -> Path:
    """Write a PNG, 1600 pixels wide: the first fixed prompts before and after, the reward curve beside."""
    png = _rasterise(_poster(read_run(run), count))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(png)
    return temporary.replace(path)


def _rasterise(svg: str) -> bytes:
    """SVG to PNG with resvg, which only the recipes need."""
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            "The README picture is drawn with resvg-py, which is not installed; the report itself does not "
            "need it. Install it with `pip install resvg-py` and call again."
        ) from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg))


def _poster(run: Run, count: int) -> str:
    """A light card with round corners on nothing, so that it sits well on a light and on a dark page."""
    if len(run.grids) < 2 or not run.scored:
        raise ValueError(
            f"{run.folder} holds {len(run.grids)} image grids and {len(run.rows)} steps. The picture shows "
            "images before and after training; make it when the run has logged a second grid."
        )
    cards, height = _cards(run, count)
    style = re.sub(r"var\(--(\w+)\)", lambda name: LIGHT[name[1]], STYLE + POSTER_STYLE)
    right, last = MARGIN + 2 * (2 * SIDE + 36) + 34, max(run.grids)
    parts = [
        f"<style>{style}</style>",
        f'<rect class="card" x="1" y="1" width="1598" height="{height - 2}" rx="22"/>',
        _text(MARGIN, MARGIN + 20, f"Before and after {counted(last, 'step')}, same noise", "start", "title"),
        _text(right, MARGIN + 20, _poster_title(run), "start", "title"),
        *cards,
        _curve(run, right, MARGIN + HEADING, 1600 - MARGIN / 2 - right, height - 2 * MARGIN - HEADING),
    ]
    return _svg(1600, height, "Before and after training", parts)


def _poster_title(run: Run) -> str:
    ends = " → ".join(number(row["reward_mean"]) for row in (run.scored[0], run.scored[-1]))
    return f"Mean reward {ends} {run.unit}".strip()


POSTER_STYLE = """
.chart .card { fill: var(--paper); stroke: var(--rule); stroke-width: 2; }
.chart .title { font-size: 25px; font-weight: 600; fill: var(--ink); }
.chart .dot { opacity: 0; }
.chart .prompt { font-size: 21px; fill: var(--ink); }
"""


def _cards(run: Run, count: int) -> tuple[list[str], int]:
    """The pairs in two columns, read downwards, and the height of a poster that holds them."""
    first, last = run.tiles(min(run.grids)), run.tiles(max(run.grids))
    pairs = list(zip(run.prompts, first, last, strict=True))[:count]
    rows, pitch = math.ceil(len(pairs) / 2), SIDE + 52
    places = [divmod(i, rows) for i in range(len(pairs))]
    cards = [
        _pair(pair, MARGIN + column * (2 * SIDE + 36), MARGIN + HEADING + row * pitch)
        for pair, (column, row) in zip(pairs, places, strict=True)
    ]
    return cards, 2 * MARGIN + HEADING + rows * pitch - 14


def _pair(pair: tuple[str, Image.Image, Image.Image], x: int, y: int) -> str:
    """Two tiles side by side over their prompt."""
    prompt, before, after = pair
    text = _text(x, y + SIDE + 26, textwrap.shorten(prompt, 30, placeholder=" …"), "start", "prompt")
    return _poster_tile(before, x, y) + _poster_tile(after, x + SIDE + 6, y) + text


def _poster_tile(image: Image.Image, x: int, y: int) -> str:
    file = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="data:image/png;base64,{data}"/>'


def _curve(run: Run, x: float, y: float, width: float, height: float) -> str:
    chart = reward_chart(run, round(width / CHART_SCALE), round(height / CHART_SCALE))
    return f'<g transform="translate({x} {y}) scale({CHART_SCALE})">{chart}</g>'
