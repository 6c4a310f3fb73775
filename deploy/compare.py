"""`ddpo compare`: several variants of one run over several seeds, and the paper's figure of them.

Consumes a comparison file, produces a folder of runs with `compare.html`, drawings and `compare.json` beside them;
waits for the runs, one after the other. Runs that are done are not done again, so a comparison that was stopped goes on
where it was, and one more variant or seed costs only its own runs.

    recipe = "demo"                      # a recipe or run file
    seeds = [0, 1, 2]
    [common]                             # what all variants change in it, as in a run file
    steps = 24
    [variants.ddpo-is]                   # one table a variant
    [variants.ddpo-sf.learner]
    algorithm = "ddpo-sf"
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.runfile import parse
from deploy import recipes
from deploy.compare_page import Curve, draw
from deploy.folder import RunFolder, guarded, write

FOLDER = Path(__file__).resolve().parent / "comparisons"
KEYS = ("recipe", "seeds", "common", "variants")


@dataclass(frozen=True)
class Comparison:
    """runs: {variant: one run a seed}, all checked; about: the file's first comment line."""

    name: str
    about: str
    runs: dict[str, list[Run]]


def names() -> list[str]:
    """All comparisons that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, words: list[str]) -> Comparison:
    """A comparison by name or file, every run of it checked; raises InputError or ConfigError."""
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    if not path.is_file():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f'Did you mean "{close[0]}"?' if close else f"Comparisons: {', '.join(names())}."
        raise InputError(f"there is no comparison and no file {name!r}. {hint}")
    table = _table(path)
    plain, seeds = _base(table), _seeds(table, words)
    changes = [word for word in words if not word.startswith("seeds=")]
    runs = {
        variant: [_run(plain, change, variant, seed, changes, path) for seed in seeds]
        for variant, change in table["variants"].items()
    }
    about = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    return Comparison(path.stem, about, runs)


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from None
    unknown = [key for key in table if key not in KEYS]
    variants = table.get("variants")
    if unknown or "recipe" not in table or not isinstance(variants, Mapping) or not variants:
        found = f"unknown here: {', '.join(unknown)}" if unknown else "recipe or variants is missing"
        raise InputError(
            f'{path} is no comparison ({found}). It has recipe = "NAME", seeds = [0, 1, 2], a table [common] and one '
            "table [variants.NAME] for each variant."
        )
    return table


def _base(table: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's table with what all variants change in it."""
    recipe = recipes.path_of(str(table["recipe"]))
    return merged(tomllib.loads(recipe.read_text(encoding="utf-8")), table.get("common", {}))


def _seeds(table: Mapping[str, Any], words: list[str]) -> list[int]:
    asked = [word.removeprefix("seeds=") for word in words if word.startswith("seeds=")]
    try:
        seeds = json.loads(asked[-1]) if asked else table.get("seeds", [0, 1, 2])
    except ValueError:
        seeds = None
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise InputError("seeds: write a list of whole numbers, for example seeds=[0,1,2].")
    return seeds


def merged(table: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the change laid over it, inner tables key by key."""
    inner = {key: merged(table.get(key, {}), part) for key, part in change.items() if isinstance(part, Mapping)}
    return {**table, **change, **inner}


def _run(
    plain: Mapping[str, Any], change: Mapping[str, Any], variant: str, seed: int, words: list[str], path: Path
) -> Run:
    own = {"name": f"{variant}-{seed}", "seed": seed}
    return parse(merged(merged(plain, change), own), words, f"{path}, variant {variant}")


def compare(name: str, words: list[str], out: Path | None, in_process: bool) -> Path:
    """Do the runs that are not done, draw the figure, return the page."""
    from deploy.prepare import prepare
    from deploy.train import train

    comparison = read(name, words)
    folder = out or Path("runs") / f"compare-{comparison.name}"
    for run in (run for runs in comparison.runs.values() for run in runs):
        train(prepare(run), folder, "" if (folder / run.name / "config.toml").exists() else None, in_process)
    curves = [curve(variant, [folder / run.name for run in runs]) for variant, runs in comparison.runs.items()]
    with guarded(folder):
        write(folder / "compare.json", json.dumps(summary(curves), indent=1))
        return draw(comparison.name, comparison.about, curves, folder)


def curve(variant: str, folders: list[Path]) -> Curve:
    """Read the runs of one variant; seeds are cut to the steps that all have."""
    rows = [RunFolder(folder).metrics() for folder in folders]
    count = min(len(some) for some in rows)
    rewards = [[row["reward_mean"] for row in some[:count]] for some in rows]
    walls = zip(*(accumulate(row["seconds"]["total"] for row in some[:count]) for some in rows), strict=True)
    seconds = [sum(wall) / len(wall) for wall in walls]
    return Curve(variant, [row["reward_queries"] for row in rows[0][:count]], rewards, seconds)


def summary(curves: list[Curve]) -> dict[str, Any]:
    """Per variant: queries, and mean reward over the same last queries for each seed, their mean and standard error."""
    last = max(curve.queries[0] for curve in curves)
    return {"last_queries": last, "variants": {curve.variant: _figures(curve, last) for curve in curves}}


def _figures(curve: Curve, last: int) -> dict[str, Any]:
    ends = curve.ending(last)
    mean = sum(ends) / len(ends)
    spread = math.sqrt(sum((end - mean) ** 2 for end in ends) / (len(ends) - 1) / len(ends)) if len(ends) > 1 else None
    return {
        "queries": curve.queries[-1], "seconds": curve.seconds[-1], "seeds": ends, "mean": mean,
        "standard_error": spread,
    }
