"""A plan as lines for a person. Consumes a `Plan`, produces text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from deploy.planning.compute import lines
from deploy.planning.plan import Plan
from deploy.planning.processes import Process
from deploy.planning.room import Crew, Seats
from deploy.report.scale import duration, size

UP_NOW = ("these are the nodes that are up now; the autoscaler may start more, which --cluster FILE counts, with the "
          "file that the cluster was made from")
COLUMNS = {"weights": "weights", "learning": "gradients, Adam", "activations": "activations",
           "beside": "layouts, workspaces, graphs", "cuda": "CUDA itself"}


def render(plan: Plan) -> str:
    """All of it."""
    return "\n".join([f"{plan.run}: {plan.model}", *_crews(plan.crews), *_memory(plan), *_compute(plan),
                      *_bytes(plan), *_time(plan), *_seats(plan), *_notes(plan)])


def _crews(crews: Sequence[Crew]) -> Iterator[str]:
    yield "\nWho goes where"
    for crew in crews:
        where = ", ".join(f"{key}={value}" for key, value in crew.labels.items())
        place = f"on nodes with {where}" if where else "on any node"
        yield f"  {crew.name:<12} {_range(crew.low, crew.high):>7} x {crew.wish:<18} {place}"
    sums = [f"{sum(crew.low * getattr(crew, kind) for crew in crews):g}" for kind in ("gpus", "cpus")]
    most = [f"{sum(crew.high * getattr(crew, kind) for crew in crews):g}" for kind in ("gpus", "cpus")]
    parts = [f"{_range(low, high)} {kind}" for low, high, kind in zip(sums, most, ("GPU", "CPU"), strict=True)]
    yield f"  {'together':<12} {' + '.join(parts)}"


def _range(low: object, high: object) -> str:
    return f"{low}" if low == high else f"{low}..{high}"


def _memory(plan: Plan) -> Iterator[str]:
    yield "\nMemory of one process at its peak, estimated (of rewards the weights alone; what they compute is more)"
    for process in plan.memory:
        said = process.unknown and f"unknown: {process.unknown}"
        source = " (of published sizes: its model is not on this machine)" if process.published else ""
        yield f"  {process.crew:<12} {process.device}  {said or _parts(process)}{source}"
    if plan.together:
        yield f"  together     {size(plan.together)} on the GPU that all of them share"
    if plan.stated:
        yield f"  The run file says: {plan.stated}"


def _parts(process: Process) -> str:
    parts = {COLUMNS[part]: count for part, count in process.parts.items() if count}
    return _sum(parts) if parts else "no model"


def _compute(plan: Plan) -> Iterator[str]:
    if plan.compute:
        yield "\nCompute"
        yield from (f"  {name:<12} {value}" for name, value in lines(plan.compute))


def _bytes(plan: Plan) -> Iterator[str]:
    if plan.store:
        yield "\nBytes in object stores (of what is in flight) and over the network"
        yield f"  object stores: {_sum(plan.store)}"
        yield f"  a step:        {_sum(plan.network)}"


def _sum(parts: Mapping[str, float]) -> str:
    if len(parts) == 1:
        return "".join(f"{size(count)} of {name}" for name, count in parts.items())
    return f"{size(sum(parts.values()))} = " + " + ".join(f"{name} {size(count)}" for name, count in parts.items())


def _time(plan: Plan) -> Iterator[str]:
    yield "\nTime"
    if plan.time is None:
        yield "  unknown: give --time STAGE=SECONDS for every stage, or --like RUN with a run that measured them"
        return
    idle = ", ".join(f"{name} {max(0.0, share):.0%}" for name, share in plan.time.idle.items())
    yield (f"  {duration(plan.time.seconds_per_step)} a step, {duration(plan.time.seconds)} in all, "
           f"{plan.time.images_per_second:.3g} images/s")
    yield f"  with {', '.join(f'{count} {name}' for name, count in plan.time.workers.items())}; idle: {idle}"
    yield f"  {plan.time.advice}"


def _seats(plan: Plan) -> Iterator[str]:
    if plan.seats or plan.lacks:
        yield "\nCluster"
    if plan.seats:
        yield from _rooms(plan.seats, plan.crews)
    yield from (f"  lacks: {lack}" for lack in plan.lacks)
    if plan.awaits:
        yield from (f"  no room yet: {lack}" for lack in plan.awaits)
        yield f"  {UP_NOW}"


def _notes(plan: Plan) -> Iterator[str]:
    if plan.notes:
        yield "\nNotes"
    yield from (f"  {note}" for note in plan.notes)


def _rooms(seats: Seats, crews: Sequence[Crew]) -> Iterator[str]:
    yield f"  nodes to start with: {_nodes(seats.nodes)}" + (
        f"; with all that find room: {_nodes(seats.most)}" if seats.most != seats.nodes else "")
    for crew in crews:
        if crew.low <= seats.rooms[crew.name] < crew.high:
            yield f"  room for {seats.rooms[crew.name]} {crew.name}, of at most {crew.high}"
    if not seats.lacks:
        yield "  the run fits"


def _nodes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items()) or "none"
