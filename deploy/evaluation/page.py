"""The page of an evaluation: one HTML file that opens offline, in the look of the run report.

Consumes summary.json's content and the pairs of every trial, produces HTML; waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from deploy.evaluation.forest import forest
from deploy.evaluation.models import BASE, POLICIES
from deploy.evaluation.rounding import signed, span
from deploy.evaluation.sentences import statement
from deploy.evaluation.trial import Trial
from deploy.report import images
from deploy.report.markup import HALF, WIDE, figure, section, table, twice
from deploy.report.page import document
from deploy.report.scale import number, thin

PAIRS = 12  # most that a trial shows
Summary = Mapping[str, Any]


def page(summary: Summary, shown: Sequence[str]) -> str:
    """The whole page; `shown` are the pairs of the trials, in their order."""
    sections = [
        section("Differences", _differences(summary)),
        section("Pictures", _pictures(summary["trials"], shown)),
        section("Numbers", _numbers(summary)),
        section("Variety", _variety(summary["trials"])),
        section("Command and environment", _facts(summary)),
    ]
    return document("evaluation", summary["run"], statement(summary), sections, FOOTER)


FOOTER = """<p>Base and tuned model get the same prompts and start from the same noise, so a pair differs by the
training alone. Intervals hold 95 %: a bootstrap over prompts, each with all its images. The deployment sampler adds no
noise between steps and takes fewer of them; a gain that the training's sampler alone shows is not one that users get.
All numbers are in summary.json, every image's scores in eval.csv.</p>"""


def _differences(summary: Summary) -> str:
    names = [name for name in summary["rewards"] if any(trial["rewards"].get(name) for trial in summary["trials"])]
    if not names:
        return "<p>No pair of images has a score.</p>"
    charts = [_chart(summary, name, WIDE if len(names) == 1 else HALF) for name in names]
    return "".join(charts) if len(names) == 1 else f'<div class="small">{"".join(charts)}</div>'


def _chart(summary: Summary, name: str, width: int) -> str:
    entry = summary["rewards"][name]
    role = f"weight {entry['weight']:g}" if entry["weight"] else "watched, not trained on"
    size = " The reward is minus the size as a JPEG, in kB." if entry["kind"] == "compressibility" else ""
    caption = f"{escape(name)} ({role}): tuned minus base, mean and 95 % interval.{size}"
    return figure(twice(lambda across: forest(summary["trials"], name, entry["unit"], across), width), caption)


def pairs(trial: Trial, unit: str) -> str:
    """Some of the trial's prompts, evenly spread and none chosen by hand: base and tuned side by side."""
    count = len(trial.prompts.text) // len(trial.suite.prompts)
    rows = thin(range(0, len(trial.prompts.text), count), PAIRS)
    cards = "\n".join(_card(trial, row, unit) for row in rows)
    return f'<div class="pairs" {images.sizes(trial.images[BASE].shape[2], 1)}>\n{cards}\n</div>'


def _card(trial: Trial, row: int, unit: str) -> str:
    text = trial.prompts.text[row]
    tiles = [images.tile(Image.fromarray(trial.images[who][row]), f"{text}, {who}") for who in POLICIES]
    captions = [_captions(trial, who, row) for who in POLICIES]
    return images.card(text, tiles, _scores(trial, row), unit, captions)


def _scores(trial: Trial, row: int) -> str:
    """What became of every score, a line each; the name only where there are several."""
    base, tuned = (trial.scored[who].parts for who in POLICIES)
    changes = {name: f"{_score(base[name][row])} → {_score(tuned[name][row])}" for name in base}
    if len(changes) == 1:
        return next(iter(changes.values()))
    return "<br>".join(f"{escape(name)} {change}" for name, change in changes.items())


def _score(value: float) -> str:
    return "no score" if math.isnan(value) else number(value)


def _captions(trial: Trial, who: str, row: int) -> list[str]:
    said = [info["caption"][row] for info in trial.scored[who].info.values() if "caption" in info]
    return [text for text in said if text]


def _pictures(trials: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    return "\n".join(_trial(trial, cards) for trial, cards in zip(trials, shown, strict=True))


def _trial(trial: Mapping[str, Any], cards: str) -> str:
    settings = f"{trial['steps']} steps, eta {trial['eta']:g}"
    if trial["sampler"] != "training":
        return f"<details><summary>The same with the deployment sampler: {settings}</summary>{cards}</details>"
    caption = f"Left: base. Right: tuned. The training's sampler: {settings}."
    return f"<h3>{escape(trial['title'])}</h3>\n{figure(cards, caption)}"


def _numbers(summary: Summary) -> str:
    head = ["suite", "sampler", "reward", "base", "tuned", "change", "95 % interval", "improved", "pairs", "left out"]
    lines = [
        [escape(trial["suite"]), trial["sampler"], escape(name), *_cells(result, trial["images"])]
        for trial in summary["trials"] for name, result in trial["rewards"].items()
    ]
    return figure(table(head, lines), NUMBERS) + _without_score(summary["trials"])


NUMBERS = (
    "Means over prompts. Improved: share of pairs whose tuned image scores higher; equal scores do not count. Left "
    "out: pairs of which an image has no score."
)


def _cells(result: Mapping[str, Any] | None, count: int) -> list[str]:
    if result is None:
        return ["", "", "", "", "", "0", f"{count:,}"]
    return [
        number(result["base"]), number(result["tuned"]), signed(result), span(result),
        f"{100 * result['improved']:.0f} %", f"{result['pairs']:,}", f"{result['left_out']:,}",
    ]


def _without_score(trials: Sequence[Mapping[str, Any]]) -> str:
    reasons = sorted({reason for trial in trials for reason in trial["without_score"]})
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f"<p>Why pairs were left out, an image of them being without a score:</p><ul>{items}</ul>" if items else ""


def _variety(trials: Sequence[Mapping[str, Any]]) -> str:
    head = ["suite", "sampler", "diversity of base", "of tuned", "distance of tuned from base"]
    lines = [
        [escape(trial["suite"]), trial["sampler"],
         *("–" if (value := trial["diversity"][who]) is None else number(value) for who in POLICIES),
         number(trial["distance_to_base"])]
        for trial in trials
    ]
    return figure(table(head, lines), VARIETY)


VARIETY = (
    "Diversity: mean distance of two images of one prompt; where training lowers it much, the prompt's images have "
    "become alike. Distance from base: of two images of the same noise. Distances are root mean squares of pixels in "
    "[0, 1], images shrunk to 32 × 32."
)


def _facts(summary: Summary) -> str:
    lines = [summary["command"], *(f"# {key.replace('_', ' ')}: {value}" for key, value in summary.items()
                                   if key not in ("command", "trials", "rewards"))]
    block = escape("\n".join(lines))
    return f'<p>{REPEATABLE}</p><pre class="copy" tabindex="0">{block}</pre>'


REPEATABLE = "On the same hardware and library versions this command gives the same numbers."
