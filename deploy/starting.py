"""The wait for a cluster to start what a run needs.

Consumes the pools and the learner that were asked for, produces nothing; waits, with a deadline, for their processes,
and says meanwhile what it waits for and what is there.
"""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future
from typing import Any

from ddpo.config import Run
from ddpo.control import Control
from ddpo.errors import DeadlineError, WorkerError
from ddpo.pool import Lost, Pool
from deploy.placing import labels_here, shown, wanted

SOON = 15.0  # seconds after which it is said what a run waits for


def await_start(run: Run, control: Control, pools: Sequence[Pool], learner: Any) -> None:
    """Until every pool has its first workers and the learner stands; raises what kept one of them from it."""
    from deploy.staff import same_sources

    up = {pool.name: control.spawn(pool.staffed()) for pool in pools}
    ranks = [control.spawn(same_sources(started)) for started in learner.started]
    soon = min(SOON, run.ray.timeout)
    if not _missing([*up.values(), *ranks], soon):
        return
    lack = _lack(run, control, [pool for pool in pools if not up[pool.name].done()], ranks)
    print(f"Waiting, ray.timeout = {run.ray.timeout:g} s at most, for {lack}.", file=sys.stderr, flush=True)
    if _missing([*up.values(), *ranks], run.ray.timeout - soon):
        lack = _lack(run, control, [pool for pool in pools if not up[pool.name].done()], ranks)
        raise DeadlineError(
            f"after ray.timeout = {run.ray.timeout:g} s the cluster has not started {lack}. Add nodes, or lower "
            "actors.count, rewards.NAME.workers, or the cpus and gpus they reserve."
        )


def _missing(everyone: Collection[Future[Any]], seconds: float) -> set[Future[Any]]:
    """Those that are not there after so many seconds; raises what one of them raised."""
    done, missing = concurrent.futures.wait(everyone, timeout=seconds, return_when=FIRST_EXCEPTION)
    for future in done:
        try:
            future.result()
        except Lost as loss:  # of a rank: a pool has tries of its own
            raise WorkerError(f"the learner {loss}") from None
    return missing


def _lack(run: Run, control: Control, pools: Sequence[Pool], ranks: Sequence[Future[Any]]) -> str:
    """Who is not there yet, and what the cluster has."""
    import ray

    where = {name: shown(labels_here(wants)) for name, wants in wanted(run).items()}
    states = [control.call(pool.state) for pool in pools]
    waiting = [f"{state.starting} of {state.target} {state.name}{where[state.name]}" for state in states]
    waiting += [f"the learner{where['learner']}"] * any(not rank.done() for rank in ranks)
    return (
        f"{', '.join(waiting)}: it has {_resources(ray.cluster_resources())}, free now "
        f"{_resources(ray.available_resources())}"
    )


def _resources(table: Mapping[str, float]) -> str:
    return ", ".join(f"{table.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
