"""Being asked to stop: the first Ctrl-C or SIGTERM ends the run after the step in hand, the second at once.

After SIGTERM, which a machine sends before it is taken away, the second comes by itself; see checkpoints.notice.
`ddpo stop` ends it after the step in hand, however often it is said.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKED = signal.SIGUSR1  # what the run sends itself where `ddpo stop` was said
SIGNALS = (signal.SIGINT, signal.SIGTERM, ASKED)
STEP = 0.5  # of the notice is for the step in hand, the rest for leaving: ending a cluster may take some seconds


class Stop:
    """Whether a stop was asked for; before `wait_for_step` any signal stops at once, since there is nothing to keep.

    keep: called on SIGTERM, in the handler, so that what can be kept is on disk before anything else ends
    late: the step in hand did not end within its part of `notice` seconds
    """

    def __init__(self, notice: float) -> None:
        self.stepping, self.late, self.keeping = False, False, False
        self.came: set[int] = set()
        self.unheard: list[int] = []
        self.keep: Callable[[], None] = lambda: None
        self.timer = threading.Timer(STEP * notice, self._leave)
        self.timer.daemon = True

    @property
    def requested(self) -> bool:
        """Whether anything asked for it."""
        return bool(self.came)

    @property
    def asked(self) -> bool:
        """Whether `ddpo stop` did."""
        return ASKED in self.came

    @property
    def signalled(self) -> bool:
        """Whether Ctrl-C or SIGTERM did."""
        return bool(self.came - {ASKED})

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler. The first SIGTERM is a notice whatever came before it."""
        if self.keeping:
            self.unheard.append(signum)
            return
        first, again = signum not in self.came, self.signalled and signum != ASKED
        notice = first and signum == signal.SIGTERM
        self.came.add(signum)
        if notice and self.stepping:
            self.timer.start()
        if signum == signal.SIGTERM:
            self._keep()
        if (again and not notice) or (first and not self.stepping):
            raise KeyboardInterrupt
        if first:
            self._tell(signum)

    def _keep(self) -> None:
        """Nothing breaks it off: signals that come meanwhile are heard after it."""
        self.keeping, self.unheard = True, []
        try:
            self.keep()
        finally:
            self.keeping = False
        for signum in self.unheard:
            self(signum, None)

    def _tell(self, signum: int) -> None:
        """Not print(): the signal may come in the midst of another print, which Python refuses to enter again."""
        limit = f", or in {self.timer.interval:.3g} s" if signum == signal.SIGTERM else ""
        more = "`ddpo stop` asked for it." if signum == ASKED else "Once more stops at once."
        os.write(2, f"\nStopping after this step{limit}, with a checkpoint. {more}\n".encode())

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
        """Handle all of SIGNALS."""
        for number in SIGNALS:
            signal.signal(number, self)


@contextmanager
def stoppable(notice: float) -> Iterator[Stop]:
    """Handle all of SIGNALS in the block."""
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
    """Put the first of SIGNALS off to the end of a block that starts processes, and raise KeyboardInterrupt
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
    """Ignore SIGNALS in a block that cleans up: it is short, and half of it would leave things behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
