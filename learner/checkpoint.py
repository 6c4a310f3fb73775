"""Checkpoints: all that a run needs to go on as if it had never stopped.

    checkpoints/000010/
        learner.safetensors                  weights, their average where there is one, Adam's moments
        policies/000008.msgpack ...          the last lag + 1 policies, so that batches in flight are drawn again
        state.json                           step, advantage statistics, the run's config
        pytorch_lora_weights.safetensors     weights (or average) for plain diffusers; unet/ where fully trained
        manifest.json                        sha256 of every file above

Written under another name and renamed when complete, so a checkpoint is whole or not there. Random choices are keyed
by (seed, step), so there is no generator's state to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ddpo.base import BaseModel
from ddpo.config import Run, plain
from ddpo.errors import CheckpointError, DeliveryError
from ddpo.types import Policy
from ddpo.weights import read
from learner import lora

FORMAT = "ddpo-checkpoint/1"
MANIFEST = "manifest.json"
BEST = "best"  # a link to one of the checkpoints

# Tables and keys that change no number of the run; a checkpoint may be resumed with other values of them.
FREE = ("name", "steps", "stall", "checkpoints", "guard", "images", "wandb", "ray")
FREE_KEYS = ("count", "max_count", "workers", "max_workers", "cpus", "gpus", "role", "accelerator", "timeout", "graphs")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: as it stands, or as it was read and proven."""

    step: int
    learner: dict[str, NDArray[Any]]
    policies: list[Policy]
    advantage: dict[str, list[float]]


def save(folder: Path, state: Checkpoint, run: Run, base: BaseModel) -> Path:
    """Write checkpoints/STEP and return its path; leaves nothing behind where it fails, raises OSError."""
    target = folder / f"{state.step:06d}"
    partial = folder / f".partial-{state.step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "policies").mkdir(parents=True)
        _write(partial, state, run, base)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except SafetensorError as error:  # its way to say that a file could not be written
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(folder: Path, state: Checkpoint, run: Run, base: BaseModel) -> None:
    save_file(state.learner, folder / "learner.safetensors")
    for policy in state.policies:
        (folder / "policies" / f"{policy.version:06d}.msgpack").write_bytes(policy.message)
    lora.save(_exported(state.learner), run.policy, base, folder)
    facts = {"format": FORMAT, "run": plain(run), "step": state.step, "advantage": state.advantage}
    (folder / "state.json").write_text(json.dumps(facts, indent=1))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): sum_of(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1))
    for path in [*files, folder / MANIFEST]:
        _sync(path)


def _exported(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What others load: the average of the weights where the run keeps one, else the weights."""
    for kind in ("average/", "weights/"):
        found = {key.removeprefix(kind): value for key, value in arrays.items() if key.startswith(kind)}
        if found:
            return found
    raise AssertionError("a learner's state has weights")


def sum_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the one that `best` points to."""
    best = (folder / BEST).resolve()
    for path in steps(folder)[:-keep]:
        if path.resolve() == best:
            continue
        leaving = path.rename(path.with_name(f".partial-{path.name}"))
        shutil.rmtree(leaving)


def steps(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first; what a crash left half-written has another name and is no candidate.
    None where the folder is not there, or goes away meanwhile."""
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.name.isdigit() and (path / MANIFEST).is_file())
    return []


def load(path: Path, run: Run) -> Checkpoint:
    """Read and prove one checkpoint; raises CheckpointError with the reason and the one before it, if any."""
    try:
        return _read(path, run)
    except CheckpointError as error:
        before = [other.name for other in steps(path.parent) if other.name < path.name and _usable(other, run)]
        offer = f" The one before it is whole: `--resume {before[-1]}` goes on from there." if before else ""
        raise CheckpointError(f"checkpoint {path}: {error}{offer}") from None


def _usable(path: Path, run: Run) -> bool:
    try:
        _read(path, run)
    except CheckpointError:
        return False
    return True


def _read(path: Path, run: Run) -> Checkpoint:
    state = read_state(path)
    _check_origin(state, run)
    try:
        policies = [read(file.read_bytes()) for file in sorted((path / "policies").glob("*.msgpack"))]
        learner = load_file(path / "learner.safetensors")
        return Checkpoint(state["step"], learner, policies, state["advantage"])
    except (KeyError, OSError, SafetensorError, DeliveryError) as error:
        raise CheckpointError(f"it is damaged: {error}.") from None


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint whose files are all as they were written; raises CheckpointError."""
    _check_files(path)
    try:
        state = json.loads((path / "state.json").read_text())
        found = state.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"it is damaged: state.json cannot be read ({error}).") from None
    if found != FORMAT:
        raise CheckpointError(f"its format is {found!r}; this program reads {FORMAT!r}.")
    return state


def _check_files(path: Path) -> None:
    if not (path / MANIFEST).is_file():
        raise CheckpointError("there is no complete checkpoint here (no manifest.json).")
    try:
        sums = json.loads((path / MANIFEST).read_text())
        items = dict(sums).items()
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"it is damaged: manifest.json cannot be read ({error}).") from None
    for name, expected in items:
        if not (path / name).is_file():
            raise CheckpointError(f"it is damaged: {name} is missing.")
        if sum_of(path / name) != expected:
            raise CheckpointError(f"it is damaged: {name} is not what was written (its sha256 differs).")


def _check_origin(state: Mapping[str, Any], run: Run) -> None:
    # A key that is newer than the checkpoint had its default there.
    theirs, ours = _facts(plain(Run())) | _facts(state.get("run", {})), _facts(plain(run))
    differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if differing:
        shown = ", ".join(f"{key} = {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in differing[:4])
        shown += f", and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise CheckpointError(
            f"it is of another run ({shown}): going on would mix two configurations and no longer be either. "
            "Resume with the config it was made with, or start a new run under another name."
        )


def _facts(table: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the numbers depend on, flattened."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if key not in FREE:
            flat |= _flatten(key, value)
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] not in FREE_KEYS}


def _flatten(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for inner, part in value.items() for k, v in _flatten(f"{key}.{inner}", part).items()}
