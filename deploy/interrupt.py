"""Being asked to stop: the first Ctrl-C (or SIGTERM) ends the run after the step in hand, the second at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a stop was asked for; before `wait_for_step` any signal stops at once, since there is nothing to keep."""

    def __init__(self) -> None:
        self.requested, self.stepping = False, False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        at_once = self.requested or not self.stepping
        self.requested = True
        if at_once:
            raise KeyboardInterrupt
        # not print(): the signal may come in the middle of another print, which Python refuses to enter again
        os.write(2, b"\nStopping after this step, with a checkpoint. Once more stops at once.\n")

    def wait_for_step(self) -> None:
        """From now on the first signal waits for the step in hand; call after Ray has put its own handlers in place."""
        self.stepping = True
        self.install()
        if self.requested:  # while Ray started, and some library caught what the handler raised
            raise KeyboardInterrupt

    def install(self) -> None:
        """Handle SIGINT and SIGTERM."""
        for number in SIGNALS:
            signal.signal(number, self)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM in the block."""
    stop, before = Stop(), {number: signal.getsignal(number) for number in SIGNALS}
    stop.install()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole() -> Iterator[None]:
    """Put the first SIGINT or SIGTERM off to the end of a block that starts processes, and raise KeyboardInterrupt
    there: Python drops what is raised while it forks, so the signal would be lost. The second is not put off."""
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        if len(noted) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM in a block that cleans up: it is short, and half of it would leave things behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
