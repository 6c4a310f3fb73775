"""`ddpo plan`: what a run needs before any of it is paid for, and what a cluster lacks for it.

Consumes a run file, its model's JSON files, times of stages, a cluster's nodes or the file that starts them; produces
a `Plan`. Waits for the hub (the model's JSON files alone), for servers of rewards and for the dashboard.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from ddpo.base import BaseModel, find
from ddpo.config import Run, chunks
from ddpo.errors import NotHereError
from deploy import recipes
from deploy.advice import advise, share_gpu
from deploy.planning import nodes
from deploy.planning.compute import Compute, compute
from deploy.planning.measured import spent
from deploy.planning.network import network, pixels, trajectories
from deploy.planning.processes import Process, against_gpus, gpus, processes, proposals, together
from deploy.planning.room import Crew, Node, Seats, crews, has_roles, seat
from deploy.prepare import Prepared, check_deadlines, described_note, prepare


@dataclass(frozen=True)
class Time:
    """What the simulator says. workers: to which pools have grown; advice: what limits the run with them."""

    seconds_per_step: float
    seconds: float
    images_per_second: float
    workers: dict[str, int]
    idle: dict[str, float]
    advice: str


@dataclass(frozen=True)
class Plan:
    """Everything that `ddpo plan` tells. together: bytes where all share one GPU, else 0; stated: the GPU memory that
    the run file's second line states; store: bytes in flight; network: bytes a step; both by what they are, empty where
    the model is not here. lacks: what of the run cannot start; awaits: what has no room on the nodes that are up, of a
    cluster that may start more."""

    run: str
    model: str
    crews: list[Crew]
    memory: list[Process]
    together: float
    stated: str
    compute: Compute | None
    store: dict[str, float]
    network: dict[str, float]
    time: Time | None
    seats: Seats | None
    lacks: list[str]
    awaits: list[str]
    notes: list[str]


def plan(options: argparse.Namespace) -> Plan:
    """Work it out; raises InputError."""
    recipe, changes = recipes.named(options.words, "plan needs a recipe or run file, for example `ddpo plan demo`.")
    run = recipes.find(recipe, changes)
    prepared, unknown = _prepared(run)
    base = prepared.base if prepared else None
    there = _nodes(options)
    seats, staff = seat(run, there) if there else None, crews(run, has_roles(there) or not there)
    kinds = {crew.name: gpus(crew, there) for crew in staff}
    if prepared:
        check_deadlines(prepared, kinds)
    counted = prepared.counted if prepared else None
    needed, policy = processes(run, counted), counted.policy if counted else 0
    problems, notes = against_gpus(staff, needed, there)
    notes += proposals(run, needed, staff, there)
    said, warnings = spent(run, options.like, options.time)
    time = _time(prepared, said, policy, options) if prepared and said else None
    samplers = time.workers["samplers"] if time else run.actors.count
    short = seats.lacks if seats else []
    grows = bool(options.address) and nodes.grow(there)
    return Plan(
        run.name, run.policy.base, staff, needed, together(needed, staff), recipes.stated_memory(recipe),
        compute(run, counted.work, kinds) if counted else None,
        _store(run, base, policy) if base else {}, network(run, base, policy, samplers) if base else {}, time, seats,
        lacks=[*([] if grows else short), *problems], awaits=short if grows else [],
        notes=[note for note in (unknown, described_note(base) if base else "", *warnings, *notes) if note],
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


def _store(run: Run, base: BaseModel, policy: int) -> dict[str, float]:
    """Bytes in the object stores of all nodes together: lag + 1 batches, and the policies that draw them."""
    batches = run.lag + 1
    return {"trajectories": batches * trajectories(run, base), "images": batches * pixels(run, base),
            "policies": float(batches * policy)}


def _time(prepared: Prepared, said: Sequence[str], policy: int, options: argparse.Namespace) -> Time:
    """The run's own loop and pools on virtual time."""
    from deploy.simulate import given, short, simulate

    run = prepared.run
    times = given(run, prepared.base, said, options.call, options.bandwidth, policy)
    found = simulate(short(run), prepared.base, prepared.prompts, times)
    work = {name: chunks(run) * seconds for name, seconds in (("samplers", times.sample), *times.rewards.items())}
    shared = share_gpu(run.actors.gpus, run.learner.gpus)
    advice = str(advise(work, found.workers, times.learn, run.lag, chunks(run), shared))
    return Time(found.seconds_per_step, found.seconds_per_step * run.steps, found.images_per_second,
                dict(found.workers), dict(found.idle), advice)
