"""Who goes where, and whether there is room: what a run's workers reserve, against the nodes of a cluster.

Consumes a `Run` and `Node`s, produces `Crew`s and what the nodes lack for them; waits for nothing. No torch, no Ray.
Workers are seated as Ray seats them: a node must have the labels, a worker with a part of a GPU never has parts of two,
and one without GPUs keeps away from nodes with them where it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddpo.config import Run
from deploy.placing import ROLE, labels, wanted

NEARLY = 1e-6  # fractions of a GPU add up to less than one, or a little more


@dataclass(frozen=True)
class Crew:
    """The workers of a pool, or the learner's ranks. low, high: how many at first, and at most; the rest is of one."""

    name: str
    low: int
    high: int
    cpus: float
    gpus: float
    labels: Mapping[str, str]

    @property
    def wish(self) -> str:
        """What one reserves."""
        parts = [f"{amount:g} {kind}" for amount, kind in ((self.gpus, "GPU"), (self.cpus, "CPU")) if amount]
        return " + ".join(parts) or "nothing"


@dataclass(frozen=True)
class Node:
    """A node that is there, or that a cluster file may start. kind: its type or its address, for people."""

    kind: str
    cpus: float
    gpus: float
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Seats:
    """lacks: what of the run cannot start; rooms: workers that find room, by crew; nodes: how many of each kind it
    takes to start with, most: for all workers that find room."""

    lacks: list[str]
    rooms: dict[str, int]
    nodes: dict[str, int]
    most: dict[str, int]


def crews(run: Run, roles: bool = True) -> list[Crew]:
    """All of a run, on a cluster whose nodes have `roles` or not."""
    return [Crew(name, *_counts(wants), wants.cpus, wants.gpus, labels(wants, roles))
            for name, wants in wanted(run).items()]


def _counts(wants: object) -> tuple[int, int]:
    """Workers at first and at most: actors.count, rewards.NAME.workers or learner.ranks, and the limits of pools."""
    names = ("count", "max_count"), ("workers", "max_workers"), ("ranks", "ranks")
    low, high = next(pair for pair in names if hasattr(wants, pair[0]))
    return getattr(wants, low), max(getattr(wants, low), getattr(wants, high))


@dataclass
class _Room:
    """What is left of a node."""

    node: Node
    used: bool = False
    cpus: float = field(init=False)
    gpus: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.cpus, self.gpus = self.node.cpus, [1.0] * int(self.node.gpus)

    def fits(self, crew: Crew) -> bool:
        free = sum(gpu > 1 - NEARLY for gpu in self.gpus) if crew.gpus >= 1 else max(self.gpus, default=0.0)
        return _has(self.node, crew) and crew.cpus <= self.cpus + NEARLY and crew.gpus <= free + NEARLY

    def seat(self, crew: Crew) -> None:
        self.used, self.cpus = True, self.cpus - crew.cpus
        for _ in range(max(1, round(crew.gpus)) if crew.gpus else 0):
            share = min(1.0, crew.gpus)
            tightest = min(gpu for gpu in self.gpus if gpu > share - NEARLY)
            self.gpus[self.gpus.index(tightest)] -= share


def _has(node: Node, crew: Crew) -> bool:
    return crew.labels.items() <= node.labels.items()


def seat(run: Run, nodes: Sequence[Node]) -> Seats:
    """First all that the run starts with, then as many more as it may grow to."""
    everyone = sorted(crews(run, has_roles(nodes)), key=lambda crew: (-crew.gpus, -crew.cpus))
    rooms, found = [_Room(node) for node in nodes], Counter[str]()
    lacks = []
    for crew in everyone:
        found[crew.name] = sum(_sit(crew, rooms) for _ in range(crew.low))
        if found[crew.name] < crew.low:
            lacks.append(_lack(crew, found[crew.name], nodes))
    first = _used(rooms)
    for crew in everyone:
        found[crew.name] += sum(_sit(crew, rooms) for _ in range(crew.high - crew.low))
    return Seats(lacks, dict(found), first, _used(rooms))


def has_roles(nodes: Sequence[Node]) -> bool:
    """Whether roles matter on this cluster (deploy.placing)."""
    return any(ROLE in node.labels for node in nodes)


def _sit(crew: Crew, rooms: Sequence[_Room]) -> bool:
    """Give one worker a place, if there is one."""
    fitting = [room for room in rooms if room.fits(crew)]
    if fitting:
        min(fitting, key=lambda room: (0 if crew.gpus else room.node.gpus, not room.used)).seat(crew)
    return bool(fitting)


def _used(rooms: Sequence[_Room]) -> dict[str, int]:
    return dict(Counter(room.node.kind for room in rooms if room.used))


def _lack(crew: Crew, found: int, nodes: Sequence[Node]) -> str:
    """What is missing for a crew, and why no node has it."""
    what = f"{crew.low - found} of {crew.low} {crew.name} ({crew.wish} each)"
    where = ", ".join(f"{key}={value}" for key, value in crew.labels.items())
    matching = [node for node in nodes if _has(node, crew)]
    if not matching:
        return f"{what}: no node has {where}" if where else f"{what}: there is no node"
    among = f" with {where}" if where else ""
    largest = max(matching, key=lambda node: (node.gpus, node.cpus))
    if not any(_Room(node).fits(crew) for node in matching):
        return f"{what}: the largest node{among} has {largest.gpus:g} GPU + {largest.cpus:g} CPU"
    full = f"all {len(matching)} nodes{among} are full" if len(matching) > 1 else f"the node{among} is full"
    return f"{what}: {full}"
