"""Being asked to stop: the first Ctrl-C or SIGTERM ends the run after the step in hand, the second at once.

After SIGTERM, which a machine sends before it is taken away, the second comes by itself; see checkpoints.notice.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STEP = 0.5  # of the notice is for the step in hand, the rest for leaving: ending a cluster may take some seconds


class Stop:
    """Whether a stop was asked for; before `wait_for_step` any signal stops at once, since there is nothing to keep.

    keep: called on SIGTERM, in the handler, so that what can be kept is on disk before anything else ends
    late: the step in hand did not end within its part of `notice` seconds
    """

    def __init__(self, notice: float) -> None:
        self.requested, self.stepping, self.late = False, False, False
        self.keep: Callable[[], None] = lambda: None
        self.timer = threading.Timer(STEP * notice, self._leave)
        self.timer.daemon = True

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        at_once = self.requested or not self.stepping
        self.requested = True
        if at_once:
            raise KeyboardInterrupt
        limit = ""
        if signum == signal.SIGTERM:
            limit = f", or in {self.timer.interval:.3g} s"
            self.timer.start()
            self.keep()
        # not print(): the signal may come in the middle of another print, which Python refuses to enter again
        os.write(2, f"\nStopping after this step{limit}, with a checkpoint. Once more stops at once.\n".encode())

    def _leave(self) -> None:
        """Not setitimer: ddpo.deadline has the process's alarm."""
        self.late = True
        os.kill(os.getpid(), signal.SIGTERM)

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
def stoppable(notice: float) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM in the block."""
    stop, before = Stop(notice), {number: signal.getsignal(number) for number in SIGNALS}
    stop.install()
    try:
        yield stop
    finally:
        stop.timer.cancel()
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
