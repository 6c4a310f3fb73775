"""No wait without an end: run a block for at most so many seconds, and show where it hangs."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from ddpo.errors import DeadlineError


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise DeadlineError inside the block after `seconds`.

    Uses the process's alarm, so that the block runs in the main thread: a second thread that touches torch nearly
    halves the speed of the first. Python code and system calls are interrupted; C code that never returns is not,
    and is left to the pool's own deadline, which ends the run. Outside a main thread there is no alarm, hence no
    limit here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise DeadlineError(f"{what} took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def stacks_after(seconds: float, file: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """Write where every thread stands, to stderr or an open file, if the block takes longer; nothing is interrupted, C
    code is shown. A process has one such block at a time. Gives what starts the seconds anew, for one that moves on.

    For a process that is about to be killed: the stacks are read without the interpreter's lock, so that threads which
    still run can crash it (https://github.com/python/cpython/issues/140815).
    """

    def anew() -> None:
        faulthandler.dump_traceback_later(seconds, file=file or sys.stderr)

    anew()
    try:
        yield anew
    finally:
        faulthandler.cancel_dump_traceback_later()
