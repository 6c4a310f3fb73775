"""How a learner outlives its processes: all its ranks end, are started again, and do once more what they were at.

Consumes a group of ranks and work for it, produces what the work gives; waits as long as the group does, and a pause
between two starts that fail. Nothing here is Ray's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ddpo.errors import DeadlineError, WorkerError
from ddpo.work import LONGEST_PAUSE, STARTS, Gone, Lost

T = TypeVar("T")
TRIES = 3  # losses over one piece of work, before the run gives up


class Hung(Exception):
    """The ranks neither answered nor died in their time."""


class Group(Protocol):
    """All ranks. actors: none where they were ended; step: batches learned from."""

    step: int
    actors: list[Any]

    def start(self) -> None: ...  # all, and return at once
    async def up(self) -> None: ...  # wait for them; raises Lost where one is gone
    def rebuild(self) -> None: ...  # start all and have them stand where the last step ended
    def end(self) -> None: ...  # whatever they are doing


async def stand(group: Group) -> None:
    """Start all ranks and wait for them; where one dies over it, start all again after 2, 4, 8, ... s, as a pool does.

    Raises WorkerError after five tries.
    """
    tried = 0
    while True:
        group.start()
        try:
            return await group.up()
        except Lost as loss:
            group.end()
            tried += 1
            if tried == STARTS:
                raise WorkerError(
                    f"the learner died at its start {STARTS} times, one after the other; the last time it {loss}. Look "
                    "at its log (ray logs, or the dashboard's Actors page)."
                ) from None
        await asyncio.sleep(min(2.0**tried, LONGEST_PAUSE))


def outlived(group: Group, work: Callable[[], T], renew: Callable[[], None] = lambda: None) -> T:
    """What `work` gives, whichever ranks die over it; where they hang, it has one more try.

    renew: has made again what the work needs and was lost
    """
    cause, losses, hangs = "", 0, 0
    while losses < TRIES:
        try:
            if not group.actors:
                group.rebuild()
            return work()
        except Lost as loss:
            cause, losses = str(loss), losses + 1
            group.end()
        except Gone as loss:
            cause, losses = str(loss), losses + 1
            renew()
        except Hung as hang:
            hangs += 1
            group.end()
            _judge(str(hang), hangs)
    raise WorkerError(
        f"the learner died {TRIES} times in step {group.step + 1}: {cause}. `--resume` goes on from the last "
        "checkpoint once the cause is mended."
    )


def _judge(what: str, hangs: int) -> None:
    """Say that there is one more try, or raise that there is none."""
    advice = (
        "Raise it if the step is that long (`--check` prints its arithmetic); where a rank hangs, its log shows where."
    )
    if hangs > 1:
        raise DeadlineError(
            f"{what}, nor by ranks that were started once more for it. {advice} `--resume` goes on from the last "
            "checkpoint."
        )
    text = f"{what}. The learner's ranks are ended and started again, for one more try. {advice}"
    print(text, file=sys.stderr, flush=True)
