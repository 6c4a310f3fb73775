"""A run that stands still says so, and leaves its stacks; it ends nothing, since every wait has a deadline of its own.

Consumes what a run counts, produces a call of `tell` and stacks.txt; waits, in a thread of its own that touches no
torch, for the count to stand still. It needs the interpreter's lock, so that it is silent while C code keeps that;
faulthandler is not, but what it reads of threads that still run may be gone, and then it takes the process with it.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

GROWTH = 2.0  # each pause before it speaks again of the same standstill, over the one before
OFTEN = 10  # looks in `seconds`, but one a second at most


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
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.is_set():
            seen, since, pause = self.moved(), time.monotonic(), self.seconds
            while self._stood(seen, pause):
                stood = time.monotonic() - since
                with self.stacks.open("a") as file:
                    print(f"{time.strftime('%F %T')}: nothing has moved for {stood:.1f} s", file=file)
                    write_stacks(file)
                self.tell(stood)
                pause *= GROWTH

    def _stood(self, seen: Any, pause: float) -> bool:
        """Whether nothing moves for so long."""
        end = time.monotonic() + pause
        while time.monotonic() < end:
            if self.over.wait(self.period) or self.moved() != seen:
                return False
        return True


def write_stacks(file: TextIO) -> None:
    """Where every thread of this process stands, by the thread's name, the innermost call last."""
    stacks = {ident: list(traceback.walk_stack(frame)) for ident, frame in sys._current_frames().items()}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, stack in stacks.items():
        lines = traceback.StackSummary.extract(reversed(stack)).format()
        file.write(f"\nThread {names.get(ident, ident)}:\n{''.join(lines)}")
    file.write("\n")
