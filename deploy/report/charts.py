"""The charts of a run: reward, series by step, log-prob differences, wall time.

Consumes: a run or its rows, at least one. Produces: SVG text. Waits for nothing.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from deploy.report import svg
from deploy.report.read import Row, Run
from deploy.report.scale import Scale, number, padded, thin

POINTS, BARS = 200, 120  # most that a chart draws of a long run
FIXED = "fixed prompts and noise"


def reward_chart(run: Run, width: int, height: int = 340) -> str:
    """Mean reward of each step's images, with one standard deviation around it, by images scored so far."""
    rows, fixed = thin(run.rows, POINTS), run.fixed_means
    spread = [row["reward_mean"] + side * row["reward_std"] for row in rows for side in (-1, 1)]
    x = Scale(0, rows[-1]["reward_queries"], svg.LEFT, width - 64)
    y = Scale(*padded([*spread, *(mean for _, mean in fixed)]), height - svg.BOTTOM, svg.TOP)
    points = [(x(row["reward_queries"]), y(row["reward_mean"])) for row in rows]
    parts = [
        svg.y_axis(x, y, "mean ± std" + (f", {run.unit}" if run.unit else "")),
        svg.step_axis(x, y.start, run.rows, width // 95, "reward_queries", "step"),
        _band(rows, x, y),
        svg.level(x, points[0][1], "mark"),
        svg.diamond(x.stop - 153, svg.TOP - 24) + svg.text(x.stop, svg.TOP - 20, FIXED, "end") if fixed else "",
        svg.curve(points, "accent"),
        *(svg.diamond(x(queries), y(mean)) for queries, mean in fixed),
        _end_labels(run, x.stop + 10, y),
        svg.hits(x, y, points, [_reward_hover(row, run.unit) for row in rows]),
    ]
    ends = [f"{number(row['reward_mean'])} at step {row['step']}" for row in (rows[0], rows[-1])]
    return svg.drawing(width, height, "Line chart: mean reward, from " + " to ".join(ends), parts)


def _band(rows: Sequence[Row], x: Scale, y: Scale) -> str:
    """The area of mean ± standard deviation; a bar where there is one step only."""
    wide = [(row, 0) for row in rows] if len(rows) > 1 else [(rows[0], -6), (rows[0], 6)]
    upper, lower = (
        [(x(row["reward_queries"]) + d, y(row["reward_mean"] + side * row["reward_std"])) for row, d in wide]
        for side in (1, -1)
    )
    return f'<polygon class="band" points="{svg.coordinates([*upper, *reversed(lower)])}"/>'


def _end_labels(run: Run, x: float, y: Scale) -> str:
    """The last mean beside its point, and the first beside the dotted line, unless they would collide."""
    first, last = run.ends
    labels = [svg.text(x, y(last) + 4, number(last), "start", "strong")]
    if abs(y(first) - y(last)) > 16:
        labels.append(svg.text(x, y(first) + 4, number(first), "start"))
    return "\n".join(labels)


def _reward_hover(row: Row, unit: str) -> str:
    mean, spread = number(row["reward_mean"]), number(row["reward_std"])
    return f"step {row['step']:,} · {row['reward_queries']:,} queries · {mean} ± {spread} {unit}".strip()


def lines_chart(
    rows: Sequence[Row],
    series: Mapping[str, Sequence[float]],
    name: str,
    marks: Mapping[str, float],
    width: int,
    height: int = 244,
) -> str:
    """One or two series, a value a row (first in the accent colour, second in the warm one), with dotted marks."""
    steps = thin([row["step"] for row in rows], POINTS)
    values = {label: thin(column, POINTS) for label, column in series.items()}
    x = Scale(rows[0]["step"] - 0.5, rows[-1]["step"] + 0.5, svg.LEFT, width - (66 if marks else 16))
    y = Scale(*padded([*marks.values(), *(v for column in values.values() for v in column)]), height - 34, svg.TOP)
    lines = [[(x(step), y(v)) for step, v in zip(steps, column, strict=True)] for column in values.values()]
    label, leading = next(iter(values.items()))
    parts = [
        svg.y_axis(x, y, name),
        svg.step_axis(x, y.start, rows, width // 80, "step"),
        *(svg.level(x, y(v), "mark") + svg.text(x.stop + 8, y(v) + 4, mark, "start") for mark, v in marks.items()),
        *(svg.curve(points, colour) for points, colour in zip(lines, ("accent", "warm"), strict=False)),
        svg.hits(x, y, lines[0], [f"step {s:,} · {label} {number(v)}" for s, v in zip(steps, leading, strict=True)]),
    ]
    ends = "; ".join(f"{label} from {number(column[0])} to {number(column[-1])}" for label, column in values.items())
    return svg.drawing(width, height, f"Line chart by step: {ends}", parts)


def delta_by_timestep(rows: Sequence[Row]) -> dict[int, list[float]]:
    """{timestep: its |Δ log-prob| in every step that trained it}."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for timestep, delta in row["log_prob_delta_by_timestep"].items():
            found.setdefault(int(timestep), []).append(abs(delta))
    return found


def noise_chart(rows: Sequence[Row], clip: float, width: int, height: int = 300) -> str:
    """|Δ log-prob| of unchanged weights by timestep: smallest to largest over the steps, a dot near the mean.

    A logarithmic axis cannot hold an exact zero, so zeros lie on a lane of their own under it.
    """
    deltas = delta_by_timestep(rows)
    positive = [d for values in deltas.values() for d in values if d > 0]
    limits, lane = [*positive, clip], height - svg.BOTTOM
    labelled = sorted(deltas, reverse=True)[:: math.ceil(len(deltas) / (width // 75))]
    x = Scale(max(deltas) + 20, min(deltas) - 20, svg.LEFT, width - 16)
    y = Scale(min(limits) / (5 if positive else 1e4), max(limits) * 4, lane - 26, svg.TOP, log=True)
    parts = [
        svg.y_axis(x, y, "mean |Δ log-prob|"),
        svg.level(x, lane) + svg.text(x.start - 8, lane + 4, "0", "end"),
        svg.text(0, lane + 22, "timestep", "start"),
        *(svg.text(x(t), lane + 22, str(t)) for t in labelled),
        svg.level(x, y(clip), "mark") + svg.text(x.stop, y(clip) - 6, f"clip range {number(clip, 2)}", "end", "strong"),
        *(_whisker(x(t), [y(d) if d else lane for d in values], values, t) for t, values in deltas.items()),
    ]
    worst = number(max(positive, default=0.0), 2)
    return svg.drawing(width, height, f"Mean |Δ log-prob| by timestep; the largest is {worst}", parts)


def _whisker(x: float, heights: Sequence[float], values: Sequence[float], timestep: int) -> str:
    mean = sum(values) / len(values)
    nearest = min(range(len(values)), key=lambda i: abs(values[i] - mean))
    hover = f"t = {timestep} · mean {number(mean)} · largest {number(max(values))} over {len(values)} steps"
    ends = f'x1="{x}" x2="{x}" y1="{min(heights)}" y2="{max(heights)}"'
    return (
        f'<g><line class="line s-accent" {ends} opacity="0.4"/>'
        f'<circle class="f-accent" cx="{x}" cy="{heights[nearest]}" r="3.5"/><title>{hover}</title></g>'
    )


def wall_seconds(row: Row) -> dict[str, float]:
    """The phases of one step, in seconds that add up to its total.

    The workers' own "sample" and "score" are summed over workers and pass partly while the learner works. Only what the
    driver waited for is wall time; it is divided between the two in the ratio of their seconds.
    """
    seconds = row["seconds"]
    workers = seconds["sample"] + seconds["score"]
    share = min(1.0, seconds["wait"] / (workers or 1.0))
    known = {"sample": share * seconds["sample"], "score": share * seconds["score"], "learn": seconds["learn"]}
    return known | {"wait": max(0.0, seconds["wait"] - workers), "log": seconds["log"]}


def time_chart(rows: Sequence[Row], width: int, height: int = 264) -> str:
    """Wall time of each step, stacked by phase."""
    stride = math.ceil(len(rows) / BARS)
    shown = rows[::stride]
    sums = [sum(wall_seconds(row).values()) for row in shown]
    x = Scale(shown[0]["step"] - stride / 2, shown[-1]["step"] + stride / 2, svg.LEFT, width - 16)
    y = Scale(0, max(sums) * 1.08 or 1.0, height - 34, svg.TOP)
    label = f"Stacked bars: seconds per step by phase; the mean step took {number(sum(sums) / len(sums))} s"
    ticks = svg.step_axis(x, y.start, rows[: (len(shown) - 1) * stride + 1], width // 80, "step")
    bars = [_bar(row, x(row["step"]), (x.stop - x.start) / len(shown), y) for row in shown]
    return svg.drawing(width, height, label, [svg.y_axis(x, y, "seconds per step"), ticks, *bars])


def _bar(row: Row, middle: float, room: float, y: Scale) -> str:
    """One step's bar, from the first phase at the bottom upwards."""
    width = min(room * 0.8, 56)
    box = f'x="{middle - width / 2:.1f}" width="{width:.1f}"'
    seconds, base, parts = wall_seconds(row), 0.0, []
    for name, value in seconds.items():
        top, bottom = y(base + value), y(base)
        parts.append(f'<rect class="f-{name}" {box} y="{top}" height="{bottom - top:.1f}"/>')
        base += value
    hover = ", ".join(f"{name} {number(value, 2)} s" for name, value in seconds.items())
    return f"<g>{''.join(parts)}<title>step {row['step']:,}: {escape(hover)}</title></g>"
