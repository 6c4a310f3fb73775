"""Virtual time: an asyncio loop whose clock jumps to the next event, for `ddpo simulate` and the pools' tests.

Consumes coroutines, produces their results; a day of sleeping workers takes as long as its events.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ddpo.control import gathered

T = TypeVar("T")


class Jump(selectors.DefaultSelector):
    """A selector that, where a loop would sleep, moves the clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Take as long as asked, in virtual seconds."""
        if timeout is None:
            raise RuntimeError("the simulation has come to a stand: nothing is scheduled and somebody waits")
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop that tells virtual time."""

    def __init__(self) -> None:
        self.clock = Jump()
        super().__init__(self.clock)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self.clock.now


class VirtualControl:
    """ddpo.control.Control on virtual time: the loop runs while somebody waits."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a coroutine."""
        return self.loop.create_task(work)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a plain function in the loop and return its result."""

        async def run() -> T:
            return function(*arguments)

        return self.loop.run_until_complete(run())

    def collect(self, futures: Sequence[asyncio.Task[T]], patience: float, what: str) -> list[T]:
        """All results, in order; raises what they raise, and DeadlineError as ddpo.control.gathered does."""
        return self.loop.run_until_complete(gathered(futures, patience, what))

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def close(self) -> None:
        """Cancel all that still runs."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()
