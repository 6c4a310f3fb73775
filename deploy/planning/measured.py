"""The times of a run's stages by another run that measured them.

Consumes that one's config.toml and metrics.jsonl, produces seconds by stage; waits for nothing.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.stages import stages
from deploy.advice import STEPS

SLOWER = (  # or faster: what a stage's time hangs on besides its images
    "policy.base", "policy.steps", "policy.guidance", "policy.dtype", "policy.train", "actors.gpus", "learner.gpus",
    "learner.ranks", "learner.inner_epochs", "learner.timestep_fraction",
)


def spent(run: Run, like: Path | None, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """STAGE=SECONDS, what was measured before what was given, and what to know about it; raises InputError."""
    there, notes = measured(run, like) if like else ({}, [])
    return [*(f"{stage}={seconds}" for stage, seconds in there.items()), *given], notes


def measured(run: Run, folder: Path) -> tuple[dict[str, float], list[str]]:
    """Seconds of the stages by another run: of a chunk of this run's size, and of a step of this run's images."""
    config, rows = _read(folder)
    rows = rows[1:][-STEPS:] or rows  # the first step loads and warms up
    theirs, ours = config["learner"]["images_per_step"], run.learner.images_per_step
    times: dict[str, float] = {}
    for stage, key in (("sample", "sample"), *((stage.pool, f"score {stage.pool}") for stage in stages(run.rewards))):
        seconds = [row["seconds"][key] for row in rows if key in row["seconds"]]
        if seconds:
            times[stage] = sum(seconds) / len(seconds) / theirs * run.actors.batch
    times["learn"] = sum(row["seconds"]["learn"] for row in rows) / len(rows) / theirs * ours
    return times, _differences(run, config, folder)


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"--like {folder} cannot be read as a run folder: {error}") from None
    if "images_per_step" not in config.get("learner", {}):
        raise InputError(f"--like {folder}: its config.toml is not that of a run (learner.images_per_step is missing).")
    if not rows:
        raise InputError(f"--like {folder}: that run has finished no step, so nothing was measured.")
    return config, rows


def _differences(run: Run, config: Mapping[str, Any], folder: Path) -> list[str]:
    """What makes a stage slower or faster and is not reckoned with."""
    ours, told = dataclasses.asdict(run), []
    for table, key in (name.split(".") for name in SLOWER):
        theirs, here = config.get(table, {}).get(key), ours[table][key]
        if theirs != here:
            told.append(f"{table}.{key} is {theirs} there, {here} here")
    return [f"the times are those of {folder}, which differs: {'; '.join(told)}"] if told else []
