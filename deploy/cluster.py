"""Ray: join the cluster that is there, or start one on this machine for the time of the run.

Consumes a `Run`, produces the three pools; waits, with a deadline, for the cluster and for room on it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ddpo.config import Run
from ddpo.control import ControlThread
from ddpo.device import RESERVED
from ddpo.errors import DeadlineError, InputError, WorkerError
from ddpo.stages import stages
from ddpo.types import Images, Rollouts
from deploy import heap
from deploy.board import Board
from deploy.interrupt import undisturbed, whole
from deploy.machines import Machines
from deploy.placing import labels_here
from deploy.prepare import Prepared

FETCH = 600.0  # seconds for images to come, drawn again if need be
JOINERS = (
    "Check ray.address (or RAY_ADDRESS) and the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN), or leave the address out to "
    "start a cluster on this machine."
)
VISITORS = (
    "Give its dashboard with --address URL, and its token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN). A run that started a "
    "cluster of its own cannot be reached."
)
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
GPU_SETTINGS = {  # of processes that may compute on a GPU, read when they first do
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # memory that is given back by pages, not by whole blocks
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # its older name, which CUDA's allocator reads first
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # else cuBLAS may give other last bits from one time to the next
}


def thread_settings(count: int) -> dict[str, str]:
    """Environment for torch, set before it is imported. Idle threads spin for some microseconds, which bridges the gap
    to the next operation, then sleep: those that spin on take the core from a neighbour process (docs/decisions.md).
    MKL computes strictly: else on AVX2 a row's last bits depend on its place in the batch, and so does the ratio."""
    threads = {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "GOMP_SPINCOUNT": "5000"}
    return {**threads, "MKL_CBWR": "AUTO,STRICT"}


@contextmanager
def connected(run: Run) -> Iterator[None]:
    """A Ray cluster for the block; one that was started here is stopped with everything on it."""
    address = run.ray.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else each attempt to join is a line on the terminal
    else:
        os.environ.update(_private())
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # what the other ranks of one that died raise is no news
    heap.share()
    import ray

    try:
        with whole():
            _join(address, f"no Ray cluster answers at {address!r}", JOINERS) if address else _start(run)
            if note := unused(run, ray.cluster_resources().get("GPU", 0)):
                print(f"Note: {note}", file=sys.stderr, flush=True)
        yield
    finally:
        with undisturbed():
            ray.shutdown()


@functools.cache
def _token() -> str:
    """One for all clusters of a process: Ray reads it once."""
    return secrets.token_hex(32)


def _private() -> dict[str, str]:
    """A cluster of our own admits nobody else: a token that only this run's processes know, and that no file holds.
    Its head never comes back once it is gone, so its processes look for it for 10 s before they leave, not 60. Its
    workers are the machine's main job: niceness 5, where Ray's 15 would leave them next to nothing beside others."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token(), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "RAY_worker_niceness": "5"}


@contextmanager
def visiting(address: str) -> Iterator[None]:
    """A cluster that runs already, for a command that looks at it or steers a run there."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    import ray

    place = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    _join(place, f"no Ray cluster that this command may join answers at {place!r}", VISITORS)
    try:
        yield
    finally:
        ray.shutdown()


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


def unused(run: Run, present: float) -> str:
    """What to say where a cluster has GPUs and the run reserves none; "" where there is nothing to say."""
    if not present or _sum(run, "gpus") or run.policy.device == "cpu":
        return ""
    return (
        f"the cluster has {present:g} GPU{'s' * (present != 1)} and the run reserves none, so all of it computes on "
        "CPUs: a worker that reserves no GPU does not see one. Fractions share one: actors.gpus=0.4 learner.gpus=0.6."
    )


def _join(address: str, absent: str, advice: str) -> None:
    import ray

    if "://" in address and not address.startswith("ray://"):
        raise InputError(f"{address!r} is a dashboard's URL, by which `ddpo submit` has a run train on the cluster; to "
                         "train from here, give HOST:PORT of its head (ray.address or RAY_ADDRESS).")
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        if "Version mismatch" in str(error):
            raise InputError(
                f"the cluster at {address!r} and this program do not fit together. {' '.join(str(error).split())}. "
                "Make the environments of both from constraints.txt."
            ) from None
        said = str(error).partition("\n")[0]
        raise InputError(f"{absent} ({type(error).__name__}: {said}). {advice}") from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at host:port; Ray itself takes many minutes to say so."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _sum(run: Run, kind: str) -> int:
    """All that the run reserves of "cpus" or "gpus", rounded up."""
    rewards = sum(stage.wants.workers * getattr(stage.wants, kind) for stage in stages(run.rewards))
    learner = run.learner.ranks * getattr(run.learner, kind)
    return math.ceil(run.actors.count * getattr(run.actors, kind) + rewards + learner)


@contextmanager
def pools(
    prepared: Prepared, board: Board | None = None, machines: Machines | None = None
) -> Iterator[tuple[Any, Any, Any]]:
    """Samplers, rewards and learner on the connected cluster, started and running this very code; `machines` is told
    what they compute on."""
    from actors.pooled import PooledSamplers
    from deploy.jobs.mailbox import mind
    from deploy.staff import Staff, arrived
    from deploy.starting import await_start, lack, tell_of_lacks
    from learner.ray_group import RayLearner
    from rewards.pooled import PooledRewards

    run, base, control = prepared.run, prepared.base, ControlThread()
    note = (machines or Machines(run)).note

    async def rank_arrived(reference: Any) -> None:
        note("learner", await arrived(reference))

    staff = Staff(run.name, environment, note)
    learner = RayLearner(run, base, environment(run.learner), labels_here(run.learner), control, rank_arrived)
    try:
        samplers = PooledSamplers(run, base, control, staff)
        rewards = PooledRewards(run, prepared.reward_sources, control, staff)
        crews = {pool.name: pool for pool in (samplers.pool, *rewards.pools.values())}
        if board:
            control.spawn(board.watch(crews, learner))
        control.spawn(mind(run.name, crews, board.says if board else lambda states: ""))
        await_start(run, control, list(crews.values()), learner)
        words = functools.partial(asyncio.to_thread, lack, run)
        control.spawn(tell_of_lacks(list(crews.values()), learner, words))
        yield samplers, rewards, learner
    finally:
        with undisturbed():
            control.close()
            learner.close()


def images(rollouts: Rollouts) -> list[Images]:
    """The images of a batch that is drawn; a chunk that was lost with its node is drawn again.

    Raises DeadlineError where they do not come.
    """
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError

    def fetch(chunk: Any) -> Images:
        try:
            return ray.get(chunk.images, timeout=FETCH)
        except ObjectLostError:
            chunk.renew([chunk], FETCH)
            return ray.get(chunk.images, timeout=FETCH)

    try:
        return [fetch(chunk) for chunk in rollouts.chunks]
    except GetTimeoutError:
        raise DeadlineError(f"the images of a chunk did not come within {FETCH:g} s.") from None
    except ObjectLostError:
        raise DeadlineError("the images of a chunk were lost with their node twice.") from None


def environment(wants: Any) -> dict[str, Any]:
    """The runtime environment of a worker that asks for `wants.threads` and `wants.gpus`.

    One that reserves no GPU sees none. Ray would let it see all of them (it leaves CUDA_VISIBLE_DEVICES alone where the
    reservation is 0), and it would sit down on the first one beside those that reserved it.
    """
    gpu = GPU_SETTINGS if wants.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return {"env_vars": {**QUIET, **thread_settings(wants.threads), RESERVED: f"{wants.gpus:g}", **gpu}}
