"""Where a run says how its pools stand and hears what is wished of them: a small actor that all on the cluster find.

Consumes the states of pools and the wishes of `ddpo scale`, produces each for the other side; waits, with deadlines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ddpo.errors import DeadlineError, InputError
from ddpo.pool import Pool, State
from deploy.interrupt import ASKED

NAMESPACE = "ddpo"
EVERY = 1.0  # seconds between two visits of the run
VISIT = 120.0  # seconds for one; the first waits for the box to start
ANSWER = 60.0  # seconds that `ddpo scale` waits for the run to take a wish
ASK = 10.0  # seconds for the mailbox to answer


class Mailbox:
    """The actor: what was said last, and the wishes that were not fetched yet."""

    def __init__(self) -> None:
        self.news: dict[str, Any] = {"says": "", "pools": []}
        self.wishes: list[tuple[str, int, int]] = []
        self.stopping = False

    def visit(self, news: dict[str, Any]) -> tuple[list[tuple[str, int, int]], bool]:
        """The run's side: leave how things stand, take the wishes, and whether it is to stop."""
        wishes, self.wishes, self.news = self.wishes, [], news
        stopping, self.stopping = self.stopping, False
        return wishes, stopping

    def wish(self, pool: str, low: int, high: int) -> None:
        """The other side: from how many to how many workers a pool shall have."""
        self.wishes.append((pool, low, high))

    def stop(self) -> None:
        """The other side: the run shall end after the step in hand."""
        self.stopping = True

    def told(self) -> dict[str, Any]:
        """How things stood at the last visit."""
        return self.news


async def mind(run: str, pools: Mapping[str, Pool], says: Callable[[list[State]], str]) -> None:
    """Keep a mailbox for a run for as long as the loop lives, another where that is lost; `says` puts into a sentence
    how far the run is."""
    from ray.exceptions import RayError

    while True:
        with suppress(RayError, TimeoutError):
            await _call(_box(run), pools, says)
        await asyncio.sleep(EVERY)


async def _call(box: Any, pools: Mapping[str, Pool], says: Callable[[list[State]], str]) -> None:
    """Visit the box until that fails or the run ends; then it is gone for others too, and its name is free."""
    import ray

    try:
        while True:
            async with asyncio.timeout(VISIT):
                await _visit(box, pools, says)
            await asyncio.sleep(EVERY)
    finally:
        ray.kill(box)


async def _visit(box: Any, pools: Mapping[str, Pool], says: Callable[[list[State]], str]) -> None:
    states = [pool.state() for pool in pools.values()]
    news = {"says": says(states), "pools": [dataclasses.asdict(state) for state in states]}
    wishes, stopping = await box.visit.remote(news)
    for name, low, high in wishes:
        if name in pools:
            pools[name].resize(dataclasses.replace(pools[name].size, low=low, high=high))
    if stopping:
        os.kill(os.getpid(), ASKED)


def _box(run: str) -> Any:
    """A new one with the run's name or, where another run on the cluster has that, with the next number, as run folders
    have it. Its visits are none of the dashboard's tasks. It lives where the run's driver does: on another node it
    would be out of reach for as long as Ray takes to see that node's end, just when somebody wants to know how the run
    stands."""
    import ray
    from ray.exceptions import ActorAlreadyExistsError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # a soft wish is not heard for an actor that reserves nothing: it is put on any node
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    settings: dict[str, Any] = {
        "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "enable_task_events": False,
        "scheduling_strategy": here,
    }
    name, number = run, 1
    while True:
        try:
            box = ray.remote(Mailbox).options(name=address(name), **settings).remote()
        except ActorAlreadyExistsError:
            number += 1
            name = f"{run}-{number}"
            continue
        if name != run:
            print(f"Note: another run {run!r} is on the cluster; `ddpo status {name}`, `ddpo scale {name}` and "
                  f"`ddpo stop {name}` are of this one.", file=sys.stderr, flush=True)
        return box


def address(run: str) -> str:
    """The actor's name."""
    return f"{run}/mailbox"


def scale(run: str, wishes: Sequence[str]) -> list[State]:
    """Have pools of a run that is on the connected cluster resized; returns how they stand once it is under way."""
    box = _find(run)
    sizes = dict(_read(wish, [state.name for state in _told(box)[1]]) for wish in wishes)
    for name, (low, high) in sizes.items():
        _ask(box.wish.remote(name, low, high))
    end = time.monotonic() + ANSWER
    while True:
        states = _told(box)[1]
        if all((state.low, state.high) == sizes.get(state.name, (state.low, state.high)) for state in states):
            return states
        if time.monotonic() > end:
            raise DeadlineError(f"run {run!r} has not taken the wish within {ANSWER:g} s; is its driver alive?")
        time.sleep(EVERY / 2)


def status(run: str) -> str:
    """How a run on the connected cluster stands: what it says of itself, and its pools."""
    says, states = _told(_find(run))
    return f"{run}: {says}\n{table(states)}"


def runs() -> list[str]:
    """The runs on the connected cluster."""
    from ray.util import list_named_actors

    found: list[Any] = list_named_actors(all_namespaces=True)
    names = [entry["name"] for entry in found if entry["namespace"] == NAMESPACE]
    return sorted(name.removesuffix("/mailbox") for name in names)


def stop(run: str) -> None:
    """Have a run on the connected cluster end after the step in hand."""
    _ask(_find(run).stop.remote())


def _ask(answer: Any) -> Any:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    try:
        return ray.get(answer, timeout=ASK)
    except (GetTimeoutError, RayActorError):
        raise DeadlineError(
            f"the run does not answer within {ASK:g} s. The node of its driver is overloaded, cut off or gone; try "
            "again in a minute, by which time Ray knows (`ray list nodes`, or the dashboard's Cluster page)."
        ) from None


def _told(box: Any) -> tuple[str, list[State]]:
    news = _ask(box.told.remote())
    return news["says"], [State(**state) for state in news["pools"]]


def _find(run: str) -> Any:
    import ray

    there = runs()
    if run not in there:
        known = f"On it: {', '.join(there)}." if there else "No run is on it."
        raise InputError(f"no run {run!r} on this cluster. {known}")
    return ray.get_actor(address(run), NAMESPACE)


def _read(wish: str, known: Sequence[str]) -> tuple[str, tuple[int, int]]:
    """describe=8 keeps a pool at 8 workers, describe=2..8 lets it have from 2 to 8."""
    match = re.fullmatch(r"([^=]+)=(\d+)(?:\.\.(\d+))?", wish)
    if not match:
        raise InputError(f"{wish!r} is no wish; write POOL=COUNT or POOL=LOW..HIGH, for example {known[0]}=4.")
    name, low, high = match[1], int(match[2]), int(match[3] or match[2])
    if name not in known:
        raise InputError(f"{wish!r}: the run has no pool {name!r}; it has {', '.join(known)}.")
    if not 1 <= low <= high:
        raise InputError(f"{wish!r}: a pool needs at least one worker, and at most no fewer than at least.")
    return name, (low, high)


def table(states: Sequence[State]) -> str:
    """The pools, one a line, and of each why its last worker did not start."""
    width = max([4, *(len(state.name) for state in states)])
    lines = [f"{'pool':<{width}}  workers  starting  limits   waiting  running  s/chunk  load"]
    lines += [
        f"{s.name:<{width}}  {s.workers:>7}  {s.starting:>8}  {f'{s.low}..{s.high}':<7}  {s.waiting:>7}  {s.running:>7}"
        f"  {s.service:>7.2f}  {s.load:.1f}" for s in states
    ]
    lines += [f"{s.name}: the last worker that should have started did not: {s.trouble}" for s in states if s.trouble]
    return "\n".join(lines)
