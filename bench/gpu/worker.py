"""The process in which the parts of the check run, so that one that hangs or crashes costs no more than itself.

Consumes names of parts, produces what went wrong with each; waits for a part no longer than it is given.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path


class Worker:
    """A process that does one part after the other, so that all of them import torch and start CUDA once; a part that
    goes beyond its time takes it along, with all that it started, and the next part gets another."""

    def __init__(self, folder: Path, dry: bool) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA once its parent has
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, folder, dry))
        self.process.start()
        end.close()

    def run(self, name: str, seconds: float) -> str:
        """Do one part; returns what went wrong, empty where nothing did."""
        start = time.monotonic()
        try:
            self.pipe.send(name)
            wrong = self.pipe.recv() if self.pipe.poll(seconds) else f"ended after {seconds:.0f} s"
        except (EOFError, OSError):
            wrong = "its process died"
        print(f"[{name}] took {time.monotonic() - start:.1f} s", flush=True)
        return wrong

    def end(self) -> None:
        """End it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()


def _serve(pipe: Connection, folder: Path, dry: bool) -> None:
    """What the worker does: answer each part's name with what went wrong."""
    os.setsid()
    from bench.gpu.measure import Bench
    from bench.gpu.parts import FUNCTIONS

    while True:
        name = pipe.recv()
        try:
            FUNCTIONS[name](Bench(name, folder, dry))
            pipe.send("")
        except Exception as error:
            traceback.print_exc()
            pipe.send(f"{type(error).__name__}: {str(error)[:300]}")
        sys.stderr.flush()
