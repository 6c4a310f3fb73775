"""Workers on Ray: restartable actors behind the verbs of a pool.

Consumes classes and what they reserve, produces workers (ddpo.work); waits, in the pools' loop, for their results.
Ray starts, places and restarts the processes and moves the objects; which job goes where is the pool's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)

from ddpo.errors import DdpoError, WorkerError, original
from ddpo.source import fingerprint
from ddpo.work import Call, Gone, Lost
from deploy.placing import labels_here

NODE_DIED = "its node has died"  # in what Ray says of an actor that went with its node
RETRY = 0.5  # seconds between two questions to an actor that Ray restarts


async def same_sources(reference: Any) -> None:
    """Wait for an actor's fingerprint; raises what its start raised, and WorkerError where it runs other code."""
    try:
        found = await reference
    except ActorUnavailableError:
        raise
    except RayActorError as error:
        raise original(str(error)) or Lost(f"did not start: {error}") from None
    if found != fingerprint():
        raise WorkerError(
            "a worker runs other sources than this driver: its node has another version of the program, and results "
            "would mix both. Bring all nodes to one version (on a cluster: ray job submit --working-dir .)."
        )


class RayWorker:
    """One actor. Ray restarts its process wherever it dies; its jobs are not repeated by Ray but by the pool."""

    def __init__(self, actor: Any, timeout: float) -> None:
        self.actor, self.timeout = actor, timeout

    async def ready(self) -> None:
        """Wait until it is placed and has loaded; raises our own errors as themselves."""
        while True:
            try:
                return await same_sources(self.actor.fingerprint.options(name="load").remote())
            except ActorUnavailableError:  # Ray is about to restart it
                await asyncio.sleep(RETRY)

    async def run(self, call: Call) -> list[Any]:
        """References to all results but the last, and the last one itself."""
        method = getattr(self.actor, call.method).options(num_returns=call.returns, name=call.label)
        found = method.remote(*call.arguments)
        references = found if call.returns > 1 else [found]
        try:
            async with asyncio.timeout(self.timeout):
                return [*references[:-1], await references[-1]]
        except TimeoutError:
            ray.kill(self.actor, no_restart=False)
            raise Lost(f"was killed: {call.label!r} took more than {self.timeout:g} s (its log shows where)") from None
        except RayActorError as error:
            said = str(error)
            raise Lost(f"died over {call.label!r}: {said.partition(chr(10))[0]:.160}", NODE_DIED in said) from None
        except ObjectLostError as error:
            raise Gone(str(error)) from None
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, DdpoError) else WorkerError(str(error))) from None

    def kill(self) -> None:
        """End it for good."""
        ray.kill(self.actor, no_restart=True)


class Staff:
    """Where the pools of a run get their workers."""

    def __init__(self, run: str, environment: Callable[[int], dict[str, Any]]) -> None:
        self.run, self.environment = run, environment

    def put(self, value: Any) -> Any:
        """A reference to a value that many calls need."""
        return ray.put(value)

    def hire(
        self, role: str, kind: type, arguments: tuple[Any, ...], wants: Any, timeout: float
    ) -> Callable[[int], RayWorker]:
        """What starts the worker with a number; `wants` says its cpus, gpus, threads, role and accelerator."""
        options = {
            "num_cpus": wants.cpus, "num_gpus": wants.gpus, "max_restarts": -1, "max_task_retries": 0,
            "runtime_env": self.environment(wants.threads), "label_selector": labels_here(wants),
        }
        remote = ray.remote(kind)

        def start(number: int) -> RayWorker:
            return RayWorker(remote.options(name=f"{self.run}/{role}-{number}", **options).remote(*arguments), timeout)

        return start
