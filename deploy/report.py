"""The run report: one HTML page that opens offline and shows what a run did, with every image inside it.

Consumes: a run folder, finished or not (`charts.read_run`). Produces: report.html in that folder, replaced
atomically. Waits for nothing; called during a run it shows the steps logged so far.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template

from PIL import Image

from deploy import charts
from deploy.charts import Row, Run, counted, number

PAIRS, FILM_ROWS, TABLE_ROWS = 24, 6, 200
Series = Callable[[Row], float | None]
LABELS = {"clip_fraction": "clip fraction", "approx_kl": "approximate KL", "grad_norm": "gradient norm"}
WIDE, HALF, NARROW = 1100, 540, 380


def write_report(run: Path) -> Path:
    """Write report.html into a run folder and return its path; an older one stays until the new one is whole."""
    temporary = run / "report.html.tmp"
    temporary.write_text(page(charts.read_run(run)), encoding="utf-8")
    return temporary.replace(run / "report.html")


def page(run: Run) -> str:
    """The whole page as HTML."""
    return PAGE.substitute(
        title=escape(run.name),
        style=_style(),
        headline=_headline(run),
        sections="\n".join(_section(heading, draw(run)) for heading, draw in SECTIONS.items()),
        unread=_unread(run),
    )


def _style() -> str:
    palettes = {"light": _palette(charts.LIGHT), "dark": _palette(charts.DARK)}
    return Template(STYLE).substitute(palettes) + charts.STYLE


def _palette(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def _section(heading: str, body: str) -> str:
    name = heading.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{heading}</h2>\n{body}\n</section>'


def _figure(drawing: str, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">\n{drawing}\n<figcaption>{caption}</figcaption>\n</figure>'


def _twice(draw: Callable[[int], str], desk: int = WIDE) -> str:
    """A chart drawn for a desk and again for a phone, of which the page shows one."""
    return f'<div class="desk">{draw(desk)}</div>\n<div class="phone">{draw(NARROW)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of ready HTML cells; the first cell of a row names it."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(_table_row(row) for row in rows)
    table = f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _table_row(cells: Sequence[str]) -> str:
    rest = "".join(f"<td>{cell}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>'


# ---- the result in words and numbers ----------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds for people: 4.2 s, 5 min 12 s, 3 h 5 min."""
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def statement(run: Run) -> str:
    """One plain sentence: what the mean reward did, in how many steps, queries and minutes.

    It rose or fell only where the change exceeds two standard errors.
    """
    if not run.scored:
        return "No step has a reward yet."
    first, last = (number(value) for value in _reward_ends(run))
    unit = f" {run.unit}" if run.unit else ""
    steps = counted(len(run.rows), "step")
    effort = f"{steps} ({run.rows[-1]['reward_queries']:,} reward queries), {duration(_wall_seconds(run))}."
    if len(run.scored) == 1:
        return f"Mean reward was {last}{unit} in {effort}"
    return f"Mean reward {_what_it_did(run, first, last, unit)} in {effort}"


def _what_it_did(run: Run, first: str, last: str, unit: str) -> str:
    start, end = _reward_ends(run)
    if abs(end - start) <= 2 * change_error(run):
        return f"did not change measurably ({first} to {last}{unit})"
    return f"{'rose' if end > start else 'fell'} from {first} to {last}{unit}"


def _reward_ends(run: Run) -> tuple[float, float]:
    """Mean reward of the first and of the last step."""
    known, rows = run.result or {}, run.scored
    return known.get("reward_first", rows[0]["reward_mean"]), known.get(
        "reward_last", rows[-1]["reward_mean"]
    )


def change_error(run: Run) -> float:
    """Standard error of (last mean - first mean), from the spread and the number of images of the two steps."""
    images = _images_scored(run)
    return math.sqrt(
        sum(row["reward_std"] ** 2 / images[row["step"]] for row in (run.scored[0], run.scored[-1]))
    )


def _images_scored(run: Run) -> dict[int, int]:
    """{step: images that it scored}, the growth of the cumulative count."""
    totals = [0, *(row["reward_queries"] for row in run.rows)]
    return {
        row["step"]: max(1, total - before)
        for row, (before, total) in zip(run.rows, pairwise(totals), strict=True)
    }


def _wall_seconds(run: Run) -> float:
    """The run's own account, else the sum of its steps."""
    logged = sum(row.get("seconds", {}).get("total", 0.0) for row in run.rows)
    return (run.result or {}).get("wall_seconds", logged)


def _images_masked(run: Run) -> int:
    logged = sum(row.get("images_masked", 0) for row in run.rows)
    return (run.result or {}).get("images_masked", logged)


def _headline(run: Run) -> str:
    """The sentence, the state of an unfinished run, and the row of headline numbers."""
    cells = [
        f'<div><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'
        for name, value, note in (_numbers(run) if run.scored else [])
    ]
    numbers = '<dl class="numbers">\n' + "\n".join(cells) + "\n</dl>" if cells else ""
    return f'<p class="statement">{escape(statement(run))}</p>\n{_state(run)}\n{numbers}'


def _state(run: Run) -> str:
    """What a run without a result.json still lacks."""
    if run.result:
        return ""
    planned = f" of {run.config['steps']:,}" if "steps" in run.config else ""
    progress = f"{len(run.rows):,}{planned} steps are logged"
    return f'<p class="state"><strong>Running or interrupted:</strong> {progress}.</p>'


def _numbers(run: Run) -> list[tuple[str, str, str]]:
    """The headline numbers: (name, value, note)."""
    first, last = _reward_ends(run)
    wall, queries = _wall_seconds(run), run.rows[-1]["reward_queries"]
    rate = (run.result or {}).get("images_per_second", queries / wall if wall else 0.0)
    change = ("+" if last > first else "") + number(last - first)
    unit = f" <small>{run.unit}</small>" if run.unit else ""
    return [
        ("Reward change", change + unit, f"± {number(change_error(run), 2)} standard error"),
        ("Steps", f"{len(run.rows):,}", f"of {run.config['steps']:,}" if "steps" in run.config else ""),
        ("Reward queries", f"{queries:,}", "images scored"),
        ("Images a second", number(rate, 2), "whole run, all phases"),
        ("Wall time", duration(wall), f"{duration(wall / len(run.rows))} a step"),
        ("Images masked", f"{_images_masked(run):,}", "not trained on"),
    ]


# ---- images -----------------------------------------------------------------------------------------


def _tile(image: Image.Image, alt: str) -> str:
    return f'<img src="{charts.data_url(image)}" alt="{escape(alt)}" width="{image.width}" height="{image.height}">'


def _sizes(run: Run) -> str:
    """How wide one tile is shown, on a desk and on a phone: small drawings twice their size, large ones shrunk."""
    width = run.layout["tile"][1]
    desk = 2 * width if width <= 96 else min(width, 224)
    return f'style="--tile: {desk}px; --small: {min(desk, 80 if width <= 96 else 160)}px"'


def _rewards(known: dict[str, float]) -> str:
    """The rewards of one image; the name only where there are several."""
    if len(known) == 1:
        return number(next(iter(known.values())))
    return ", ".join(f"{escape(name)} {number(value)}" for name, value in known.items())


def _before_after(run: Run) -> str:
    """Pairs of the same prompt and noise, from the first and the last grid."""
    if not run.grids:
        return "<p>No images are logged.</p>"
    first, last = min(run.grids), max(run.grids)
    steps = [first] if first == last else [first, last]
    tiles, rewards = [run.tiles(step) for step in steps], [run.tile_rewards(step) for step in steps]
    cards = [
        _card(
            "".join(
                _tile(images[i], f"{prompt}, {_when(step)}")
                for step, images in zip(steps, tiles, strict=True)
            ),
            prompt,
            " → ".join(_rewards(known[i]) for known in rewards if known[i]),
            run.unit,
        )
        for i, prompt in enumerate(run.prompts[:PAIRS])
    ]
    pairs = f'<div class="pairs" {_sizes(run)}>\n' + "\n".join(cards) + "\n</div>"
    return _figure(pairs, _pairs_caption(run, steps))


def _card(images: str, prompt: str, rewards: str, unit: str) -> str:
    value = f'<br><span class="value">{rewards} {unit}</span>' if rewards else ""
    return f'<div class="pair"><div>{images}</div><p>{escape(prompt)}{value}</p></div>'


def _when(step: int) -> str:
    return "before training" if step == 0 else f"after {counted(step, 'step')}"


def _pairs_caption(run: Run, steps: Sequence[int]) -> str:
    shown = f"The first {PAIRS} of {len(run.prompts)} fixed prompts. " if len(run.prompts) > PAIRS else ""
    if len(steps) == 1:
        return f"{shown}Images {_when(steps[0])}; no later ones are logged yet."
    return (
        f"{shown}Left: {_when(steps[0])}. Right: {_when(steps[1])}. Both images of a pair start from the same noise "
        "and get the same prompt, so all that differs is the policy. None is chosen by hand"
        + ("; the numbers are the rewards of these very images." if run.scores else ".")
    )


def _film(run: Run) -> str:
    """One row a prompt, one column a logged step."""
    if not run.grids:
        return "<p>No images are logged.</p>"
    tiles = {step: run.tiles(step) for step in sorted(run.grids)}
    head = ["prompt", *("before" if step == 0 else f"step {step:,}" for step in tiles)]
    rows = [
        [escape(prompt), *(_tile(images[i], f"{prompt}, {_when(step)}") for step, images in tiles.items())]
        for i, prompt in enumerate(run.prompts[:FILM_ROWS])
    ]
    caption = "The same prompts and noise after more and more updates" + (
        ": some of the logged steps, first and last included." if len(run.scores) > len(tiles) else "."
    )
    return _figure(f"<div {_sizes(run)}>{_table(head, rows, 'film')}</div>", caption)


# ---- curves -----------------------------------------------------------------------------------------


def _reward(run: Run) -> str:
    """The reward curve, the curves of its parts where there are several, and all steps as a table."""
    if not run.scored:
        return "<p>No step has a reward yet.</p>"
    curve = _figure(_twice(lambda width: charts.reward_chart(run, width)), _reward_caption(run))
    return curve + _reward_parts(run.scored) + _steps_table(run.scored)


def _reward_caption(run: Run) -> str:
    sign = "minus " if all(row["reward_mean"] <= 0 for row in run.scored) else ""
    meaning = f"The reward is {sign}the size of the image as a JPEG, in kB. " if run.unit else ""
    fixed = "Diamonds: mean reward of the fixed images above. " if charts.fixed_means(run) else ""
    return (
        f"{meaning}Line: mean reward of the images that each step trained on; band: ± one standard deviation over "
        f"those images; dotted: the first step's mean. {fixed}One reward query is one image scored."
    )


def _reward_parts(rows: Sequence[Row]) -> str:
    names = list(rows[-1].get("rewards", {}))
    if len(names) < 2:
        return ""
    drawn = [
        _small(rows, {name: lambda row, name=name: row.get("rewards", {}).get(name)}, "mean", escape(name))
        for name in names
    ]
    return f'<div class="small">{"".join(drawn)}</div>'


def _steps_table(rows: Sequence[Row]) -> str:
    """Every step's numbers, for those who read tables rather than curves."""
    shown = charts.thin(rows, TABLE_ROWS)
    keys = [
        "reward_mean",
        "reward_std",
        "clip_fraction",
        "approx_kl",
        "ratio_min",
        "ratio_max",
        "grad_norm",
        "loss",
    ]
    keys = [key for key in keys if key in rows[-1]]
    head = ["step", "queries", *(key.replace("_", " ") for key in keys)]
    body = [
        [f"{row['step']:,}", f"{row['reward_queries']:,}", *(_cell(row.get(key), key) for key in keys)]
        for row in shown
    ]
    which = "Every step" if len(shown) == len(rows) else f"{len(shown)} of {len(rows):,} steps"
    return f"<details><summary>{which} as a table</summary>{_table(head, body)}</details>"


def _cell(value: float | None, key: str) -> str:
    return "" if value is None else number(value, 6 if key.startswith("ratio") else 3)


def _small(
    rows: Sequence[Row],
    series: dict[str, Series],
    name: str,
    caption: str,
    marks: dict[str, float] | None = None,
) -> str:
    return _figure(_twice(lambda width: charts.lines_chart(rows, series, name, marks, width), HALF), caption)


def _updates(run: Run) -> str:
    """Small charts of what the updates did: clipping, divergence, ratios, gradient."""
    clip = run.config.get("learner", {}).get("clip")
    charts_of = {
        "clip_fraction": "Clip fraction: the share of (image, timestep) terms whose ratio left the clip range.",
        "approx_kl": "Approximate KL divergence between the policy that sampled and the updated one.",
        "grad_norm": "Norm of the gradient before it is clipped.",
    }
    drawn = [
        _small(run.rows, {key: lambda row, key=key: row.get(key)}, LABELS.get(key, key), caption)
        for key, caption in charts_of.items()
        if any(key in row for row in run.rows)
    ]
    if any("ratio_min" in row for row in run.rows):
        drawn.insert(2, _ratios(run.rows, clip))
    return f'<div class="small">{"".join(drawn)}</div>' if drawn else "<p>No update is logged yet.</p>"


def _ratios(rows: Sequence[Row], clip: float | None) -> str:
    series = {"largest": lambda row: row.get("ratio_max"), "smallest": lambda row: row.get("ratio_min")}
    marks = {"1 + clip": 1 + clip, "1 − clip": 1 - clip} if clip else None
    caption = "Largest and smallest importance ratio p / p<sub>old</sub> of each step" + (
        f"; dotted: the clip range 1 ± {number(clip, 2)}." if clip else "."
    )
    return _small(rows, series, "ratio p / p_old", caption, marks)


def _noise(run: Run) -> str:
    """How far the learner's log-probs are from the samplers' before any update, timestep by timestep."""
    clip = run.config.get("learner", {}).get("clip")
    deltas = charts.delta_by_timestep(run.rows)
    if not deltas:
        return "<p>No log-prob differences are logged.</p>"
    return _figure(
        _twice(lambda width: charts.noise_chart(run.rows, clip, width)), _noise_caption(deltas, clip)
    )


def _noise_caption(deltas: dict[int, list[float]], clip: float | None) -> str:
    worst = max(max(values) for values in deltas.values())
    what = (
        "Before the first update of a step the weights are those that sampled, so every ratio should be one. "
        "What is left is numerical noise: the mean |Δ log-prob| of the first minibatch at each timestep, smallest "
        "to largest over the steps, with a dot near the mean. Denoising runs from left to right. "
    )
    if worst == 0:
        return what + "Here it is exactly zero everywhere."
    if not clip:
        return what
    return what + f"The largest is {number(worst, 2)}, {number(100 * worst / clip, 2)} % of the clip range."


# ---- time, masks, provenance ------------------------------------------------------------------------


def _time(run: Run) -> str:
    """Stacked seconds per step and the share of each phase."""
    names = charts.phases(run.rows)
    if not names:
        return "<p>No times are logged.</p>"
    totals = {name: sum(row.get("seconds", {}).get(name, 0.0) for row in run.rows) for name in names}
    whole = sum(totals.values()) or 1.0
    rows = [
        [
            _swatch(name),
            duration(seconds),
            duration(seconds / len(run.rows)),
            f"{100 * seconds / whole:.1f} %",
        ]
        for name, seconds in totals.items()
    ]
    steps = sum(row.get("seconds", {}).get("total", 0.0) for row in run.rows)
    rows.append(["whole steps", duration(steps), duration(steps / len(run.rows)), ""])
    shares = _table(["phase", "total", "a step", "share"], rows, "shares")
    caption = "Seconds of each step by phase; shares are of the sum of all phases." + (
        " With lag above 0 phases overlap, so they may add up to more than whole steps."
        if run.config.get("lag")
        else ""
    )
    return _figure(_twice(lambda width: charts.time_chart(run.rows, width)) + shares, caption)


def _swatch(name: str) -> str:
    colour = name if name in charts.PHASES else "other"
    return f'<span class="swatch" style="background: var(--{colour})"></span>{escape(name)}'


def _masked(run: Run) -> str:
    """Images that no update used, by reason."""
    count = _images_masked(run)
    if not count and not run.masked:
        return (
            "<p>None: every image that was drawn was trained on.</p>" if run.rows else "<p>None so far.</p>"
        )
    if not run.masked:
        return f"<p>{count:,} images were masked; masked.jsonl, which holds the reasons, is missing.</p>"
    reasons: dict[str, list[Row]] = {}
    for row in run.masked:
        reasons.setdefault(str(row.get("reason", "no reason recorded")), []).append(row)
    ranked = sorted(reasons.items(), key=lambda item: -len(item[1]))
    lines = [[escape(reason), f"{len(rows):,}", _steps(rows)] for reason, rows in ranked]
    table = _table(["reason", "images", "steps"], lines, "reasons")
    return f"<p>{counted(count, 'image')} left out of the updates, with the reason on record.</p>{table}"


def _steps(rows: Sequence[Row]) -> str:
    steps = sorted({row["step"] for row in rows if "step" in row})
    return ", ".join(f"{step:,}" for step in steps[:8]) + (
        f" and {len(steps) - 8} more" if len(steps) > 8 else ""
    )


def _reproduce(run: Run) -> str:
    """The exact command and what it ran on, in one block to copy."""
    facts = {key: str(value) for key, value in run.facts.items() if key != "command"}
    digest = (run.result or {}).get("lora_digest")
    lines = [run.facts.get("command", "# the command was not recorded")]
    lines += [f"# {key.replace('_', ' ')}: {value}" for key, value in facts.items()]
    lines += [f"# LoRA digest: {digest}"] if digest else []
    note = REPEATABLE if digest else ""
    return f'{note}<pre class="copy" tabindex="0">{escape(chr(10).join(lines))}</pre>'


REPEATABLE = (
    "<p>A run is a function of its config and seed: on the same hardware and library versions this command "
    "ends in the same LoRA digest.</p>"
)


def _config(run: Run) -> str:
    body = f'<pre tabindex="0">{escape(run.config_text)}</pre>'
    return f"<details><summary>The resolved config</summary>{body}</details>"


def _unread(run: Run) -> str:
    if not run.unread:
        return ""
    return f"<p>Cut short and left out: {escape(', '.join(run.unread))}.</p>"


SECTIONS: dict[str, Callable[[Run], str]] = {
    "Before and after": _before_after,
    "Reward": _reward,
    "Images through training": _film,
    "Policy updates": _updates,
    "Noise floor": _noise,
    "Time": _time,
    "Masked images": _masked,
    "Command and environment": _reproduce,
    "Config": _config,
}

STYLE = """
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, system-ui, sans-serif; }
main { max-width: 1164px; margin: 0 auto; padding: 56px 32px 72px; }
h1, h2, .statement { text-wrap: balance; font-weight: 600; font-family: Charter, "Bitstream Charter",
  "Iowan Old Style", "Palatino Linotype", "Liberation Serif", Georgia, serif; }
h1 { font-size: 44px; line-height: 1.1; margin: 4px 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 25px; line-height: 1.2; margin: 0 0 18px; }
section { margin-top: 56px; padding-top: 22px; border-top: 1px solid var(--rule); }
p { margin: 0 0 14px; max-width: 68ch; }
a, summary { color: var(--accent); }
.kicker { margin: 0; font-size: 14px; color: var(--muted); }
.statement { font-size: 23px; font-weight: 400; line-height: 1.4; max-width: 36em; }
.state { border-left: 3px solid var(--warm); padding: 2px 0 2px 12px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 22px 20px;
  margin: 32px 0 0; }
.numbers dt, .numbers .note { font-size: 13px; line-height: 1.4; color: var(--muted); white-space: normal; }
.numbers dd { margin: 0; font-size: 25px; line-height: 1.3; white-space: nowrap; }
.numbers small { font-size: 15px; }
figure { margin: 0; }
figcaption { margin-top: 12px; font-size: 14px; line-height: 1.5; color: var(--muted); max-width: 76ch; }
figure + details, figure + .small { margin-top: 26px; }
.chart { display: block; width: 100%; height: auto; }
.phone { display: none; }
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 34px 20px; }
.pairs { display: grid; gap: 24px 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(2 * var(--tile) + 4px)), 1fr)); }
.pair div { display: flex; gap: 4px; }
.pair p { margin: 6px 0 0; font-size: 14px; line-height: 1.4; }
.value { color: var(--muted); }
img { width: var(--tile); height: auto; max-width: 100%; border-radius: 3px; background: var(--card); }
.pair img { max-width: calc(50% - 2px); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
table, .numbers, .value { font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 22px; text-align: right; white-space: nowrap; font-weight: 400;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-size: 13px; }
th:first-child { text-align: left; padding-left: 0; }
.reasons tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
.film th, .film td { border: 0; padding: 0 4px 4px 0; text-align: left; }
.film tbody th { white-space: normal; width: 120px; min-width: 84px; line-height: 1.3; padding-right: 12px; }
.film img { display: block; width: min(var(--tile), 112px); max-width: none; }
.shares { margin-top: 14px; }
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 8px; border-radius: 2px; }
pre { overflow-x: auto; margin: 0; padding: 16px 18px; background: var(--card); border-radius: 6px;
  font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.copy { user-select: all; -webkit-user-select: all; }
summary { cursor: pointer; padding: 4px 0; }
details > :last-child { margin-top: 8px; }
footer { margin-top: 56px; padding-top: 18px; border-top: 1px solid var(--rule); font-size: 14px;
  color: var(--muted); }
.dot { opacity: 0; }
.spot:hover .dot { opacity: 1; }
@media (max-width: 620px) {
  main { padding: 28px 18px 48px; }
  h1 { font-size: 34px; }
  .statement { font-size: 20px; }
  .numbers { grid-template-columns: repeat(2, 1fr); }
  .desk { display: none; }
  .phone { display: block; }
  .pairs { gap: 18px 12px; grid-template-columns: repeat(auto-fill, minmax(calc(2 * var(--small) + 4px), 1fr)); }
  .pair img { width: var(--small); }
  .film img { width: min(var(--small), 96px); }
  th, td { padding-left: 14px; }
}
@media print { figure, tr { break-inside: avoid; } }
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title · ddpo run report</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<p class="kicker">ddpo run report</p>
<h1>$title</h1>
$headline
</header>
$sections
<footer>
<p>The reward curve is drawn as in Black et al. 2023, “Training Diffusion Models with Reinforcement Learning”
(<a href="https://arxiv.org/abs/2305.13301">arXiv 2305.13301</a>): against reward queries, the number of images
scored, because that is what methods are compared by. All numbers come from this run's own files.</p>
$unread
</footer>
</main>
</body>
</html>
""")
