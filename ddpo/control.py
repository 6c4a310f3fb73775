"""The loop in which pools live, beside the main loop that learns.

Consumes coroutines, produces futures of their results. `ControlThread` runs its asyncio loop in a thread of its own, so
that workers get their next job while the learner learns and while a report is written; the thread touches no torch.
deploy.virtual has the same on virtual time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from ddpo.errors import DeadlineError

T = TypeVar("T")
ENDING = 30.0  # seconds that the loop's tasks have to end


class Control(Protocol):
    """An asyncio loop, seen from outside."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Any: ...
    def call(self, function: Callable[..., T], *arguments: Any) -> T: ...
    def collect(self, futures: Sequence[Any], patience: float, what: str) -> list[Any]: ...


class ControlThread:
    """An asyncio loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="control", daemon=True)
        self.thread.start()

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; the future may be waited for from the main thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a plain function in the loop and return its result."""

        async def run() -> T:
            return function(*arguments)

        return self.spawn(run()).result(ENDING)

    def collect(self, futures: Sequence[Future[T]], patience: float, what: str) -> list[T]:
        """All results, in order; raises what they raise, and DeadlineError as `gathered` does."""
        return self.spawn(gathered(futures, patience, what)).result()

    def close(self) -> None:
        """Cancel all that still runs and end the thread."""
        self.spawn(_cancel_all()).result(ENDING)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(ENDING)
        self.loop.close()


def within(future: Future[T]) -> Awaitable[T]:
    """The same future, to be awaited inside the loop."""
    return asyncio.shield(asyncio.wrap_future(future))


async def gathered(futures: Sequence[Any], patience: float, what: str) -> list[Any]:
    """All results, in order; raises the first error, and DeadlineError where none came for `patience` seconds."""
    everything = asyncio.gather(*(within(future) for future in futures))
    everything.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio tells of it
    try:
        return await _patiently(everything, futures, patience, what)
    finally:
        everything.cancel()
        await asyncio.wait([everything])


async def _patiently(everything: Any, futures: Sequence[Any], patience: float, what: str) -> list[Any]:
    there = sum(future.done() for future in futures)
    while not (await asyncio.wait([everything], timeout=patience))[0]:
        before, there = there, sum(future.done() for future in futures)
        if there == before:
            missing = len(futures) - there
            raise DeadlineError(f"{missing} of {len(futures)} {what}, and none came within {patience:g} s.")
    return everything.result()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
