"""A run that stands still says so, and leaves its stacks; it ends nothing, since every wait has a deadline of its own.

Consumes what a run counts, produces a call of `tell` and stacks.txt; waits, in a thread of its own that touches no
torch, for the count to stand still.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ddpo.deadline import stacks_after

GROWTH = 2.0  # each pause before it speaks again of the same standstill, over the one before
OFTEN = 10  # looks in `seconds`, but one a second at most
WRITING = 0.5  # seconds for the stacks to be on disk before it speaks of them


class Watchdog:
    """Calls `tell` with the seconds for which `moved` has given the same, once these are `seconds`, then after growing
    pauses; every time the stacks of all threads are in the file before."""

    def __init__(
        self, seconds: float, moved: Callable[[], Any], tell: Callable[[float], None], stacks: Path
    ) -> None:
        self.seconds, self.moved, self.tell, self.stacks = seconds, moved, tell, stacks
        self.period = min(seconds / OFTEN, 1.0)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.file = self.stacks.open("a")
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
        self.file.close()
        if self.stacks.exists() and not self.stacks.stat().st_size:
            self.stacks.unlink()

    def _watch(self) -> None:
        while not self.over.is_set():
            seen, since, pause = self.moved(), time.monotonic(), self.seconds
            while self._stood(seen, pause):
                self.tell(time.monotonic() - since)
                pause *= GROWTH

    def _stood(self, seen: Any, pause: float) -> bool:
        """Whether nothing moves for so long; the stacks come even where C code keeps every Python thread from running,
        this one too."""
        end = time.monotonic() + pause + WRITING
        with stacks_after(pause, self.file):
            while time.monotonic() < end:
                if self.over.wait(self.period) or self.moved() != seen:
                    return False
        return True
