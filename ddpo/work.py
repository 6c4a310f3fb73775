"""What a worker is and what becomes of its jobs; told of by whoever runs workers, read by the pools and the learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ddpo.errors import WorkerError

STARTS = 5  # times that nobody can start, with growing pauses between, before the pool gives up
LONGEST_PAUSE = 60.0  # seconds between two of them
LOGS = "ray logs, the dashboard's Actors page, or /tmp/ray/session_latest/logs"  # where a worker's log is found
NAMES = 100  # different numbers in the labels of a run's calls


@dataclass(frozen=True)
class Call:
    """A job: a method of the worker, how many results it has, and what to show of it. Its last result is fetched.

    images: how many it is about
    """

    method: str
    arguments: tuple[Any, ...]
    returns: int = 1
    label: str = ""
    images: int = 0


class Worker(Protocol):
    """Who runs jobs. `run` raises Lost where the worker is gone, after which `ready` waits for its replacement, and
    Failed where the job should be tried elsewhere."""

    async def ready(self) -> None: ...
    async def run(self, call: Call) -> list[Any]: ...
    def kill(self) -> None: ...


class Lost(Exception):
    """A worker died, or was killed because it hung; its job can be run elsewhere.

    with_node: whether its node has died too, as far as is known when it is called: it takes a while to be
    """

    def __init__(self, what: str, with_node: Callable[[], bool] = lambda: False) -> None:
        super().__init__(what)
        self.with_node = with_node


class Gone(Exception):
    """What a job needs, or has made, was lost with a node and has to be made again."""


class Failed(WorkerError):
    """A worker raised over a job what no message of ours foresees; another one, or a new process, may do it."""


class Poison(WorkerError):
    """A job over which one worker after the other was lost."""


def numbered(number: int, count: int) -> str:
    """A number from 0 to `count` in the label of a call, or the range that it is in where there are many: Ray keeps
    about 30 kB for every name of a call that a driver ever makes."""
    width = -(-count // NAMES)
    first = number - number % width
    return str(number) if width == 1 else f"{first}..{first + width - 1}"
