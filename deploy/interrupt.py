"""Being asked to stop: the first Ctrl-C (or SIGTERM) ends the run after the step in hand, the second at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping after this step, with a checkpoint. Once more stops at once.", file=sys.stderr, flush=True)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM in the block; enter after Ray has started, which installs handlers of its own."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
