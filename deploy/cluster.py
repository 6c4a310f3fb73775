"""Ray: join the cluster that is there, or start one on this machine for the time of the run.

Consumes a `Run`, produces the three pools; waits, with a deadline, for the cluster and for room on it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ddpo.config import Run
from ddpo.errors import DeadlineError, InputError, WorkerError
from ddpo.source import fingerprint
from deploy.interrupt import undisturbed, whole
from deploy.prepare import Prepared

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def thread_settings(count: int) -> dict[str, str]:
    """Environment for torch, set before it is imported. Idle threads spin for some microseconds, which bridges the gap
    to the next operation, then sleep: those that spin on take the core from a neighbour process (docs/decisions.md)."""
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "GOMP_SPINCOUNT": "5000"}


@contextmanager
def connected(run: Run) -> Iterator[None]:
    """A Ray cluster for the block; one that was started here is stopped with everything on it."""
    address = run.ray.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        os.environ.update(_private())
    import ray

    try:
        with whole():
            _join(address) if address else _start(run)
        yield
    finally:
        with undisturbed():
            ray.shutdown()


def _private() -> dict[str, str]:
    """A cluster of our own admits nobody else: a token that only this run's processes know, and that no file holds.
    Its head never comes back once it is gone, so its processes look for it for 10 s before they leave, not 60. Its
    workers are the machine's main job: niceness 5, where Ray's 15 would leave them next to nothing beside others."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "RAY_worker_niceness": "5"}


def _start(run: Run) -> None:
    import ray

    try:
        ray.init(
            address="local", num_cpus=max(os.cpu_count() or 1, _sum(run, "cpus")), include_dashboard=run.ray.dashboard,
            log_to_driver=False, configure_logging=True, logging_level=logging.ERROR, _node_ip_address="127.0.0.1",
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WorkerError(
            f"Ray did not start on this machine ({type(error).__name__}: {str(error).partition(chr(10))[0]}). Look for "
            "free space in /tmp and /dev/shm, or run without Ray: --in-process."
        ) from error
    needed, present = _sum(run, "gpus"), ray.cluster_resources().get("GPU", 0)
    if needed > present:
        raise InputError(
            f"the run reserves {needed} GPUs (actors.gpus, learner.gpus, rewards.NAME.gpus), this machine has "
            f"{present:g}. Reserve fewer, or fractions that share one, or give the ray.address of a cluster with them."
        )


def _join(address: str) -> None:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else each of its attempts is a line on the terminal
    import ray

    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({type(error).__name__}: {str(error).partition(chr(10))[0]}). "
            "Check ray.address (or RAY_ADDRESS) and the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN), or leave the address "
            "out to start a cluster on this machine."
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at host:port; Ray itself takes many minutes to say so."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _sum(run: Run, kind: str) -> int:
    """All that the run reserves of "cpus" or "gpus", rounded up."""
    rewards = sum(reward.workers * getattr(reward, kind) for reward in run.rewards.values())
    return math.ceil(run.actors.count * getattr(run.actors, kind) + rewards + getattr(run.learner, kind))


def pools(prepared: Prepared) -> tuple[Any, Any, Any]:
    """Samplers, rewards and learner on the connected cluster, started and running this very code."""
    from actors.ray_pool import RaySamplers
    from learner.ray_group import RayLearner
    from rewards.ray_pool import RayRewards

    run, base = prepared.run, prepared.base
    learner = RayLearner(run, base, _environment(run.learner.threads))
    samplers = RaySamplers(run, base, _environment(run.actors.threads))
    rewards = RayRewards(run, prepared.reward_sources, _environment(1))
    _await_start(run, {"sampler": samplers.started, "reward worker": rewards.started, "learner": [learner.started]})
    return samplers, rewards, learner


def _environment(threads: int) -> dict[str, Any]:
    return {"env_vars": {**QUIET, **thread_settings(threads)}}


def _await_start(run: Run, started: dict[str, list[Any]]) -> None:
    import ray

    references = [reference for group in started.values() for reference in group]
    _, missing = ray.wait(references, num_returns=len(references), timeout=run.ray.timeout)
    if missing:
        waiting = [f"{sum(r in missing for r in group)} of {len(group)} {role}s" for role, group in started.items()]
        raise DeadlineError(
            f"after ray.timeout = {run.ray.timeout:g} s the cluster has not started {', '.join(waiting)}. It has "
            f"{_resources(ray.cluster_resources())}, free now {_resources(ray.available_resources())}. Add nodes, or "
            "lower actors.count, rewards.NAME.workers, or the cpus and gpus they reserve."
        )
    from rewards.ray_pool import fetch

    if set(fetch(references, run.ray.timeout)) != {fingerprint()}:
        raise WorkerError(
            "a worker runs other sources than this driver: its node has another version of the program, and results "
            "would mix both. Bring all nodes to one version (on a cluster: ray job submit --working-dir .)."
        )


def _resources(table: Mapping[str, float]) -> str:
    return ", ".join(f"{table.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
