"""`ddpo plan`: what a run needs before any of it is paid for, and what a cluster lacks for it.

Consumes a run file, its model's JSON files, times of stages, a cluster's nodes or the file that starts them; produces
a `Plan`. Waits for the hub (the model's JSON files alone), for servers of rewards and for the dashboard.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.base import BaseModel, find
from ddpo.config import Run
from ddpo.errors import InputError, NotHereError
from ddpo.stages import stages
from deploy import nodes, recipes
from deploy.advice import STEPS, advise
from deploy.placing import ACCELERATOR
from deploy.prepare import Prepared, chunk_bytes, prepare
from deploy.report.scale import size
from deploy.room import Crew, Node, Seats, crews, has_roles, seat
from rewards.size import weights

CUDA = 1e9  # bytes that a process takes besides its tensors: the context, libraries' workspaces
GPU_MEMORY = {  # GB by Ray's names of accelerators, the smaller where there are two
    "T4": 16, "V100": 16, "A10G": 24, "L4": 24, "L40S": 48, "A100": 40, "A100-40G": 40, "A100-80G": 80, "H100": 80,
    "H200": 141,
}
SIMULATED = 40  # steps, at most
SLOWER = (  # or faster: what a stage's time hangs on besides its images
    "policy.base", "policy.steps", "policy.guidance", "policy.dtype", "policy.train", "actors.gpus", "learner.gpus",
    "learner.ranks", "learner.inner_epochs", "learner.timestep_fraction",
)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process of a crew, by what they are for; unknown: why there are none."""

    crew: str
    device: str
    parts: dict[str, float]
    unknown: str = ""

    @property
    def total(self) -> float:
        """At the peak."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Time:
    """What the simulator says. advice: which stage limits the run, and what would help."""

    seconds_per_step: float
    seconds: float
    images_per_second: float
    idle: dict[str, float]
    advice: str


@dataclass(frozen=True)
class Plan:
    """Everything that `ddpo plan` tells. store: bytes in flight; network: bytes a step; both by what they are; empty
    where the model is not here. stated: the GPU memory that the run file's second line states."""

    run: str
    model: str
    crews: list[Crew]
    memory: list[Memory]
    stated: str
    store: dict[str, float]
    network: dict[str, float]
    time: Time | None
    seats: Seats | None
    lacks: list[str]
    notes: list[str]


def plan(options: argparse.Namespace) -> Plan:
    """Work it out; raises InputError."""
    recipe, changes = recipes.named(options.words, "plan needs a recipe or run file, for example `ddpo plan demo`.")
    run = recipes.find(recipe, changes)
    prepared, unknown = _prepared(run)
    there = _nodes(options)
    seats = seat(run, there) if there else None
    needed, policy = _memory(run, prepared)
    staff = crews(run, has_roles(there) if there else True)
    problems, notes = _gpus(staff, needed, there)
    spent, warnings = _spent(run, options)
    return Plan(
        run.name, run.policy.base, staff, needed, recipes.stated_memory(recipe),
        _store(run, prepared.base, policy) if prepared else {}, _network(run, prepared.base, policy) if prepared else {},
        _time(prepared, spent, policy, options) if prepared and spent else None,
        seats, [*(seats.lacks if seats else []), *problems], [*([unknown] if unknown else []), *warnings, *notes],
    )


def _prepared(run: Run) -> tuple[Prepared | None, str]:
    """The run with its model's description, or why that cannot be had."""
    try:
        find(run.policy.base, weights=False)
    except NotHereError as error:
        return None, str(error)
    return prepare(run, weights=False), ""


def _nodes(options: argparse.Namespace) -> list[Node]:
    if options.cluster:
        return nodes.promised(options.cluster)
    return nodes.there(options.address) if options.address else []


def _memory(run: Run, prepared: Prepared | None) -> tuple[list[Memory], int]:
    """Of every crew's process, and the bytes of a policy."""
    from deploy import memory

    judges = [_judge(run, stage) for stage in stages(run.rewards)]
    if prepared is None:
        ours = [Memory(name, _device(wants), {}, "policy.base is not on this machine")
                for name, wants in (("samplers", run.actors), ("learner", run.learner))]
        return [ours[0], *judges, ours[1]], 0
    found = memory.count(run, prepared.base)
    samplers = _process("samplers", run.actors, dataclasses.asdict(found.sampler))
    learner = _process("learner", run.learner, dataclasses.asdict(found.learner))
    return [samplers, *judges, learner], found.policy


def _judge(run: Run, stage: Any) -> Memory:
    on_gpu = _device(stage.wants) == "GPU"
    size = weights(run.rewards[stage.reward], stage.verb, on_gpu)
    if size is None:
        return Memory(stage.pool, _device(stage.wants), {}, "its model is not on this machine")
    return _process(stage.pool, stage.wants, {"weights": size})


def _process(name: str, wants: Any, parts: Mapping[str, float]) -> Memory:
    device = _device(wants)
    return Memory(name, device, {**parts, "cuda": CUDA} if device == "GPU" else dict(parts))


def _device(wants: Any) -> str:
    return "GPU" if wants.gpus and getattr(wants, "device", "auto") != "cpu" else "CPU"


def _gpus(staff: Sequence[Crew], needed: Sequence[Memory], there: Sequence[Node]) -> tuple[list[str], list[str]]:
    """Crews whose process is larger than the largest GPU that they may get, or than their share of it."""
    by_name, lacks, notes = {crew.name: crew for crew in staff}, [], []
    for process in needed:
        crew = by_name[process.crew]
        kinds = {node.labels.get(ACCELERATOR, "") for node in there if crew.labels.items() <= node.labels.items()}
        known = {kind: GPU_MEMORY[kind] * 1e9 for kind in kinds | {crew.labels.get(ACCELERATOR, "")}
                 if kind in GPU_MEMORY}
        if process.device == "CPU" or process.unknown or not known:
            continue
        kind = max(known, key=lambda kind: known[kind])
        says = f"one of {crew.name} takes about {size(process.total)}"
        if process.total > known[kind]:
            lacks.append(f"{says}, more than {kind} has ({size(known[kind])})")
        elif process.total > crew.gpus * known[kind]:
            notes.append(f"{says}, more than its share of {crew.gpus:g} {kind} ({size(crew.gpus * known[kind])})")
    return lacks, notes


def _store(run: Run, base: BaseModel, policy: int) -> dict[str, float]:
    """Bytes in the object stores of all nodes together: lag + 1 batches, and the policies that draw them."""
    flying, images = run.lag + 1, run.learner.images_per_step
    return {
        "trajectories": flying * _trajectories(run, base), "images": flying * images * _pixels(base),
        "policies": float(flying * policy),
    }


def _network(run: Run, base: BaseModel, policy: int) -> dict[str, float]:
    """Bytes a step if every worker is on a node of its own; the first two are those that `ddpo simulate` counts."""
    from deploy.simulate import bytes_moved

    trajectories = bytes_moved(run, chunk_bytes(run, base), 0.0, run.actors.count)
    return {
        "trajectories": trajectories, "policies": bytes_moved(run, 0.0, policy, run.actors.count),
        "images": len(run.rewards) * run.learner.images_per_step * _pixels(base),
    }


def _trajectories(run: Run, base: BaseModel) -> float:
    return run.learner.images_per_step // run.actors.batch * chunk_bytes(run, base)


def _pixels(base: BaseModel) -> float:
    return 3.0 * base.image_size**2


def _spent(run: Run, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """STAGE=SECONDS, what was measured before what was given, and what to know about it."""
    measured, notes = _measured(run, options.like) if options.like else ({}, [])
    return [*(f"{stage}={seconds}" for stage, seconds in measured.items()), *options.time], notes


def _measured(run: Run, folder: Path) -> tuple[dict[str, float], list[str]]:
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


def _time(prepared: Prepared, spent: Sequence[str], policy: int, options: argparse.Namespace) -> Time:
    """The run's own loop and pools on virtual time."""
    from deploy.simulate import given, simulate

    run = prepared.run
    times = dataclasses.replace(given(run, prepared.base, spent, options.call, options.bandwidth), policy=float(policy))
    short = dataclasses.replace(run, steps=max(2, min(run.steps, SIMULATED)))
    found = simulate(short, prepared.base, prepared.prompts, times)
    chunks = run.learner.images_per_step // run.actors.batch
    work = {name: chunks * seconds for name, seconds in (("samplers", times.sample), *times.rewards.items())}
    workers = {crew.name: crew.low for crew in crews(run) if crew.name != "learner"}
    return Time(found.seconds_per_step, found.seconds_per_step * run.steps, found.images_per_second, dict(found.idle),
                str(advise(work, workers, times.learn, run.lag)))
