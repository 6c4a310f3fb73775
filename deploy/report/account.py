"""The run's account of itself: the result in a sentence and numbers, its time, its masked images, its command.

Consumes: a run. Produces: HTML, the headline and the sections below the curves.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

from ddpo.device import shown
from deploy import advice
from deploy.report import charts
from deploy.report.markup import figure, table, twice
from deploy.report.read import Row, Run
from deploy.report.scale import counted, duration, number


def headline(run: Run) -> str:
    """The sentence, the state of an unfinished run, and the row of headline numbers."""
    cells = [
        f'<div><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'
        for name, value, note in (_numbers(run) if run.rows else [])
    ]
    numbers = '<dl class="numbers">\n' + "\n".join(cells) + "\n</dl>" if cells else ""
    return f'<p class="statement">{escape(statement(run))}</p>\n{_state(run)}\n{numbers}'


def statement(run: Run) -> str:
    """One plain sentence: what the mean reward did, in how many steps, queries and minutes."""
    if not run.rows:
        return "No step has a reward yet."
    queries = run.rows[-1]["reward_queries"]
    steps = f"{counted(len(run.rows), 'step')} ({queries:,} reward queries)"
    return f"Mean reward {_what_it_did(run)} in {steps}, {duration(run.wall_seconds)}."


def _what_it_did(run: Run) -> str:
    """It rose or fell only where the change exceeds two standard errors."""
    start, end = run.ends
    first, last = number(start), f"{number(end)} {run.unit}".strip()
    if len(run.rows) == 1:
        return f"was {last}"
    if abs(end - start) <= 2 * change_error(run):
        return f"did not change measurably ({first} to {last})"
    return f"{'rose' if end > start else 'fell'} from {first} to {last}"


def change_error(run: Run) -> float:
    """Standard error of (last mean - first mean), from the spread and number of images of both steps."""
    return math.sqrt(sum(row["reward_std"] ** 2 / row["images"] for row in (run.rows[0], run.rows[-1])))


def _state(run: Run) -> str:
    if run.result:
        return ""
    progress = f"{len(run.rows):,} of {run.config['steps']:,} steps are logged"
    return f'<p class="state"><strong>Running or interrupted:</strong> {progress}.</p>'


def _numbers(run: Run) -> list[tuple[str, str, str]]:
    """The headline numbers: (name, value, note)."""
    first, last = run.ends
    wall, queries = run.wall_seconds, run.rows[-1]["reward_queries"]
    change = ("+" if last > first else "") + number(last - first)
    unit = f" <small>{run.unit}</small>" if run.unit else ""
    rate = sum(row["images"] for row in run.rows) / wall
    return [
        ("Reward change", change + unit, f"± {number(change_error(run), 2)} standard error"),
        ("Steps", f"{len(run.rows):,}", f"of {run.config['steps']:,}"),
        ("Reward queries", f"{queries:,}", "images scored"),
        ("Images a second", number(rate, 2), "whole run, all phases"),
        ("Wall time", duration(wall), f"{duration(wall / len(run.rows))} a step"),
        ("Images masked", f"{run.images_masked:,}", "not trained on"),
    ]


def time(run: Run) -> str:
    """Stacked seconds per step and the share of each phase."""
    if not run.rows:
        return "<p>No times are logged.</p>"
    chunks = run.config["learner"]["images_per_step"] // run.config["actors"]["batch"]
    together = advice.share_gpu(run.config["actors"].get("gpus", 0), run.config["learner"].get("gpus", 0))
    limit = advice.of(run.rows, run.config["lag"], chunks, together)
    said = f"<p>What limits this run: {escape(str(limit))}.</p>" if limit else ""
    return said + figure(twice(lambda width: charts.time_chart(run.rows, width)) + _shares(run.rows), TIME_CAPTION)


TIME_CAPTION = (
    "Wall time of each step by phase. Sampling and scoring show only as far as the learner waited for them; what "
    "passed while it was learning costs no wall time. The last column is the workers' own time, summed over all of "
    "them."
)
SWATCH = '<span class="swatch" style="background: var(--{0})"></span>{0}'


def _shares(rows: Sequence[Row]) -> str:
    """Each phase's part of the wall time, and the workers' seconds behind it."""
    walls = [charts.wall_seconds(row) for row in rows]
    totals = {name: sum(wall[name] for wall in walls) for name in walls[0]}
    workers = {name: duration(sum(row["seconds"][name] for row in rows)) for name in ("sample", "score")}
    whole, steps = sum(totals.values()), len(rows)
    lines = [
        [SWATCH.format(name), duration(s), duration(s / steps), f"{100 * s / whole:.1f} %", workers.get(name, "")]
        for name, s in totals.items()
    ]
    lines.append(["whole steps", duration(whole), duration(whole / steps), "", ""])
    return table(["phase", "wall time", "a step", "share", "workers"], lines, "shares")


def masked(run: Run) -> str:
    """Images that no update used, by reason."""
    if not run.masked:
        return "<p>None: every image that was drawn was trained on.</p>" if run.rows else "<p>None so far.</p>"
    ranked = sorted(run.masked.items(), key=lambda item: -sum(item[1].values()))
    lines = [[escape(reason), f"{sum(steps.values()):,}", _some(steps)] for reason, steps in ranked]
    count = counted(run.images_masked, "image")
    reasons_table = table(["reason", "images", "steps"], lines, "reasons")
    return f"<p>{count} left out of the updates, each for a recorded reason.</p>{reasons_table}"


def _some(numbers: Iterable[int]) -> str:
    steps = sorted(numbers)
    more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
    return ", ".join(f"{step:,}" for step in steps[:8]) + more


def reproduce(run: Run) -> str:
    """The exact command and what it ran on, in one block to copy."""
    facts = {key.replace("_", " "): value for key, value in run.facts.items() if key not in ("command", "workers")}
    for crew, kinds in run.facts.get("workers", {}).items():
        facts[crew] = "; ".join(map(shown, kinds))
    facts |= {"LoRA digest": run.result["lora_digest"]} if run.result else {}
    lines = [run.facts["command"], *(f"# {name}: {value}" for name, value in facts.items())]
    block = escape("\n".join(lines))
    return f'{REPEATABLE if run.result else ""}<pre class="copy" tabindex="0">{block}</pre>'


REPEATABLE = (
    "<p>A run is a function of its config and seed: on the same hardware and library versions this command ends in the "
    "same LoRA digest.</p>"
)


def config(run: Run) -> str:
    """The resolved config, folded away."""
    body = f'<pre tabindex="0">{escape(run.config_text)}</pre>'
    return f"<details><summary>The resolved config</summary>{body}</details>"
