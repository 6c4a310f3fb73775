"""How a learner outlives its processes: all its ranks end, are started again, and do once more what they were at.

Consumes a group of ranks and work for it, produces what the work gives; waits as long as the group does, and a pause
between two starts that fail. Nothing here is Ray's.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ddpo.errors import DeadlineError, WorkerError
from ddpo.work import LOGS, LONGEST_PAUSE, STARTS, Failed, Gone, Lost

T = TypeVar("T")
TRIES = 3  # deaths over one piece of work, before the run gives up
REDRAWS = 6  # times that what it needs is lost and made again; a zone's machines may go one after the other

RESUME = "`--resume` goes on from the last checkpoint"
LATE = "Raise it if one micro-batch takes that long (learner.micro_batch); where a rank hangs, its log shows where."


class Hung(Exception):
    """The ranks neither moved on nor died in their time."""


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
                    f"at its log ({LOGS})."
                ) from None
        await asyncio.sleep(min(2.0**tried, LONGEST_PAUSE))


def outlived(group: Group, work: Callable[[], T], renew: Callable[[], None] = lambda: None) -> T:
    """What `work` gives, whichever ranks die over it; where they hang or fail at it, it has one more try.

    renew: has made again what the work needs and was lost
    """
    happened = Counter[type]()
    while True:
        try:
            if not group.actors:
                group.rebuild()
            return work()
        except Gone as loss:
            happened[Gone] += 1
            if happened[Gone] > REDRAWS:
                raise WorkerError(_spent(f"what the learner needs was lost {REDRAWS + 1} times", group, loss)) from None
            renew()
        except (Lost, Hung, Failed) as loss:
            happened[type(loss)] += 1
            group.end()
            _judge(loss, happened[type(loss)], group)


def _judge(loss: Exception, times: int, group: Group) -> None:
    """Raise where there is no more try; where there is one more, say so."""
    again = "The learner's ranks are ended and started again, for one more try."
    match loss:
        case Lost() if times == TRIES:
            raise WorkerError(_spent(f"the learner died {TRIES} times", group, loss))
        case Failed() if times > 1:
            raise loss
        case Failed():
            print(f"{loss}\n{again}", file=sys.stderr, flush=True)
        case Hung() if times > 1:
            raise DeadlineError(f"{loss}, nor have ranks that were started once more for it. {LATE} {RESUME}.")
        case Hung():
            print(f"{loss}. {again} {LATE}", file=sys.stderr, flush=True)


def _spent(what: str, group: Group, loss: Exception) -> str:
    return f"{what} in step {group.step + 1}: {loss}. {RESUME} once the cause is mended."
