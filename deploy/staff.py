"""Workers on Ray: restartable actors behind the verbs of a pool.

Consumes classes and what they reserve, produces workers (ddpo.work); waits, in the pools' loop, for their results.
Ray starts, places and restarts the processes and moves the objects; which job goes where is the pool's.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import actors
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from ddpo.arrival import Arrival
from ddpo.device import Hardware
from ddpo.errors import DdpoError, WorkerError, original
from ddpo.source import fingerprint
from ddpo.work import Call, Failed, Gone, Lost
from deploy.placing import labels_here

RETRY = 0.5  # seconds between two questions to an actor that Ray restarts
LOOK = 5.0  # seconds between two looks at how often it did
CRASHES = 3  # of a process on its way up, before somebody should hear of them; Ray itself goes on for ever
BROKEN = 2  # jobs in a row that a process fails at, before it is started anew


async def arrived(reference: Any) -> Hardware:
    """Wait for an actor's Arrival; returns what it computes on. Raises what its start raised, and WorkerError where it
    runs other code."""
    try:
        arrival: Arrival = await reference
    except ActorUnavailableError:
        raise
    except (RayActorError, OutOfMemoryError) as error:
        raise original(str(error)) or Lost(f"did not start: {error}") from None
    if arrival.sources != fingerprint():
        raise WorkerError(
            "a worker runs other sources than this driver: its node has another version of the program, and results "
            "would mix both. Bring all nodes to one version (on a cluster: ray job submit --working-dir .)."
        )
    return arrival.hardware


class RayWorker:
    """One actor. Ray restarts its process wherever it dies; its jobs are not repeated by Ray but by the pool.

    note: is told what it computes on, each time that it is up
    node: where its process is; failed: jobs in a row that this process failed at; ended: which of its processes, by
    number, was killed last
    """

    def __init__(self, actor: Any, timeout: float, note: Callable[[Hardware], None]) -> None:
        self.actor, self.timeout, self.note, self.node, self.failed, self.ended = actor, timeout, note, "", 0, -1

    async def ready(self) -> None:
        """Wait until it is placed and has loaded; raises our own errors as themselves, and Lost where its process dies
        over that again and again."""
        while (before := (await self._told())[0]) <= self.ended:  # the old process may answer and take a job with it
            await asyncio.sleep(RETRY)
        coming = asyncio.ensure_future(self._here())
        try:
            while not (await asyncio.wait([coming], timeout=LOOK))[0]:
                if (await self._told())[0] - before >= CRASHES:
                    raise Lost(f"died {CRASHES} times while it loaded (out of memory? its log may say)")
            self.note(coming.result())
        finally:
            coming.cancel()
        self.node, self.failed = (await self._told())[1], 0

    async def _told(self) -> tuple[int, str]:
        """How often Ray has restarted it, and its node's id; Ray's public call for it needs the dashboard."""
        found: Any = await asyncio.to_thread(actors, self.actor._actor_id.hex())
        return (found["NumRestarts"], found["Address"]["NodeID"]) if found else (0, "")

    async def _here(self) -> Hardware:
        while True:
            try:
                return await arrived(self.actor.arrival.options(name="load").remote())
            except ActorUnavailableError:  # Ray is about to restart it
                await asyncio.sleep(RETRY)

    async def run(self, call: Call) -> list[Any]:
        """References to all results but the last, and the last one itself."""
        method = getattr(self.actor, call.method).options(num_returns=call.returns, name=call.label)
        found = method.remote(*call.arguments)
        references = found if call.returns > 1 else [found]
        try:
            async with asyncio.timeout(self.timeout):
                last = await references[-1]
        except TimeoutError:
            await self._anew()
            raise Lost(f"was killed: {call.label!r} took more than {self.timeout:g} s (its log shows where)") from None
        except (RayActorError, OutOfMemoryError) as error:
            what = f"died over {call.label!r}: {str(error).partition(chr(10))[0]:.160}"
            raise Lost(what, functools.partial(_has_died, self.node)) from None
        except ObjectLostError as error:
            raise Gone(str(error)) from None
        except RayTaskError as error:
            raise await self._raised(error) from None
        self.failed = 0
        return [*references[:-1], last]

    async def _raised(self, error: RayTaskError) -> Exception:
        """What a job raised. Where it is no error of ours, the process itself may be broken, as after a GPU's fault."""
        cause = error.cause if isinstance(error.cause, DdpoError) else Failed(str(error))
        if not isinstance(cause, Failed):
            return cause
        self.failed += 1
        if self.failed < BROKEN:
            return cause
        await self._anew()
        return Lost(f"was started anew, since it failed {BROKEN} times in a row: {cause}")

    async def _anew(self) -> None:
        """Have its process ended, and another started."""
        self.ended = (await self._told())[0]
        ray.kill(self.actor, no_restart=False)

    def kill(self) -> None:
        """End it for good."""
        ray.kill(self.actor, no_restart=True)


def _has_died(node: str) -> bool:
    """Whether Ray knows that a node is gone, which it may learn up to a minute later than it loses its workers."""
    return any(not found["Alive"] for found in ray.nodes() if found["NodeID"] == node)


class Staff:
    """Where the pools of a run get their workers.

    environment: of a worker's process, by what the worker wants
    note: is told the name of a pool and what a worker of it computes on
    """

    def __init__(
        self, run: str, environment: Callable[[Any], dict[str, Any]], note: Callable[[str, Hardware], None]
    ) -> None:
        self.run, self.environment, self.note = run, environment, note

    def put(self, value: Any) -> Any:
        """A reference to a value that many calls need."""
        return ray.put(value)

    def hire(
        self, role: str, kind: type, arguments: tuple[Any, ...], wants: Any, timeout: float
    ) -> Callable[[int], RayWorker]:
        """What starts the worker with a number; `wants` says its cpus, gpus, threads, role and accelerator."""
        options = {
            "num_cpus": wants.cpus, "num_gpus": wants.gpus, "max_restarts": -1, "max_task_retries": 0,
            "runtime_env": self.environment(wants), "label_selector": labels_here(wants),
        }
        remote, note = ray.remote(kind), functools.partial(self.note, role.partition(":")[2] or "samplers")

        def start(number: int) -> RayWorker:
            actor = remote.options(name=f"{self.run}/{role}-{number}", **options).remote(*arguments)
            return RayWorker(actor, timeout, note)

        return start
