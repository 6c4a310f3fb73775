"""The wait for a cluster to start what a run needs, at its beginning and later.

Consumes the pools and the learner that were asked for, produces nothing; waits, with a deadline, for their processes,
and says meanwhile what it waits for and what is there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future
from contextlib import suppress
from typing import Any

from ddpo.config import Run
from ddpo.control import Control
from ddpo.errors import DeadlineError
from ddpo.pool import Pool, State
from deploy.placing import ACCELERATOR, labels_here, shown, wanted

SOON = 15.0  # seconds after which it is said what a run waits for at its start
LATER = 60.0  # the same of workers that were added or restarted
LOOK = 5.0  # seconds between two looks at these


def await_start(run: Run, control: Control, pools: Sequence[Pool], learner: Any) -> None:
    """Until every pool has its first workers and the learner stands; raises what kept one of them from it."""
    up = {pool.name: control.spawn(pool.staffed()) for pool in pools}
    everyone = [*up.values(), learner.standing]

    def missing() -> str:
        states = [control.call(pool.state) for pool in pools if not up[pool.name].done()]
        return lack(run, states, not learner.standing.done())

    soon = min(SOON, run.ray.timeout)
    if not _missing(everyone, soon):
        return
    print(f"Waiting, ray.timeout = {run.ray.timeout:g} s at most, for {missing()}.", file=sys.stderr, flush=True)
    if _missing(everyone, run.ray.timeout - soon):
        raise DeadlineError(
            f"after ray.timeout = {run.ray.timeout:g} s the cluster has not started {missing()}. Add nodes, or lower "
            "actors.count, rewards.NAME.workers, or the cpus and gpus they reserve."
        )


def _missing(everyone: Collection[Future[Any]], seconds: float) -> set[Future[Any]]:
    """Those that are not there after so many seconds; raises what one of them raised."""
    done, missing = concurrent.futures.wait(everyone, timeout=seconds, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return missing


async def tell_of_lacks(pools: Sequence[Pool], learner: Any, words: Callable[..., Awaitable[str]]) -> None:
    """Say once of every wait for workers that were added or restarted later what is waited for; it ends nothing, since
    the others work on. Goes on for as long as the loop lives; `words` are those of `lack`."""
    now, waits = asyncio.get_running_loop().time, dict[str, float]()
    while True:
        starting = {state.name: state for state in (pool.state() for pool in pools) if state.starting}
        missing = [*starting, *["learner"] * (not learner.standing.done())]
        waits = {name: waits.get(name, now()) for name in missing}
        late = [name for name, since in waits.items() if now() - since >= LATER]
        if late:
            with suppress(Exception):  # Ray's, while its head is away: the next look asks again
                lacks = await words([starting[name] for name in late if name in starting], "learner" in late)
                text = f"For {LATER:g} s the run has waited for {lacks}. It goes on with those that are there."
                print(text, file=sys.stderr, flush=True)
                waits |= dict.fromkeys(late, math.inf)
        await asyncio.sleep(LOOK)


def lack(run: Run, states: Sequence[State], learner: bool) -> str:
    """Which workers are not there yet, and what the cluster has."""
    import ray

    where = {name: shown(labels_here(wants)) for name, wants in wanted(run).items()}
    waiting = [f"{state.starting} of {state.target} {state.name}{where[state.name]}" for state in states]
    waiting += [f"the learner{where['learner']}"] * learner
    return (
        f"{', '.join(waiting)}: the cluster has {resources(ray.cluster_resources(), ray.nodes())}, free now "
        f"{resources(ray.available_resources())}"
    )


def resources(table: Mapping[str, float], nodes: Sequence[Mapping[str, Any]] = ()) -> str:
    """CPUs and GPUs, and of which kinds the nodes' GPUs are, where they say so."""
    kinds = Counter[str]()
    for node in nodes:
        if node["Alive"] and ACCELERATOR in node["Labels"]:
            kinds[node["Labels"][ACCELERATOR]] += node["Resources"].get("GPU", 0)
    named = f" ({', '.join(f'{count:g} x {kind}' for kind, count in sorted(kinds.items()))})" if kinds else ""
    return ", ".join(f"{table.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")) + named
