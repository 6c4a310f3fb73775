"""A pool of workers that pull jobs: it grows, shrinks, and outlives the deaths of its members.

The same code runs on Ray and, on virtual time, in the simulator: a worker is whatever can run a job.
Consumes jobs, produces their results, the oldest job first; waits for workers, for each job as often as `tries`.

All of it lives in one asyncio loop (ddpo.control) and nothing in it blocks. A worker pulls its next job when it has
done the last, so the least loaded one gets it; one that leaves finishes its job first.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ddpo.errors import WorkerError
from ddpo.sizing import Load, Size
from ddpo.work import LOGS, LONGEST_PAUSE, STARTS, Call, Failed, Lost, Poison, Worker

PERIOD = 1.0  # seconds between two looks at the load
NODE = 1 / 3  # of a loss, where a worker went with its node: a machine is taken away for reasons of its own
SMOOTH = 0.2  # weight of the newest job in the mean service time


@dataclass(frozen=True)
class State:
    """A pool as it stands. service: mean seconds a job; load: busy workers, mean over the last `cooldown` seconds;
    images: that went through it; trouble: why the last worker that should have started did not, "" where one has."""

    name: str
    workers: int
    starting: int
    target: int
    low: int
    high: int
    waiting: int
    running: int
    done: int
    service: float
    load: float
    lost: int
    images: int
    trouble: str = ""

    def __str__(self) -> str:
        """For a person."""
        starting = f" and {self.starting} starting" if self.starting else ""
        trouble = f" (the last one that should have started did not: {self.trouble})" if self.trouble else ""
        counts = f"{self.running} chunks in hand, {self.waiting} waiting"
        return f"{self.name}: {self.workers} workers{starting}{trouble}, {counts}"


@dataclass(order=True)
class Job:
    """A job in the queue; the number orders it. losses: what became of the workers that tried it."""

    number: int
    call: Call = field(compare=False)
    result: asyncio.Future[Any] = field(compare=False)
    losses: list[Lost | Failed] = field(default_factory=list, compare=False)

    @property
    def blame(self) -> float:
        """How many of them it may have on its conscience."""
        return sum(NODE if isinstance(loss, Lost) and loss.with_node() else 1.0 for loss in self.losses)


@dataclass
class Member:
    """A worker of the pool. served: it was up before, so that it may be again; since: when it began its job, None where
    it has none; heard: how many workers the pool had lost when this one last said that it is there."""

    worker: Worker
    up: bool = False
    served: bool = False
    leaving: bool = False
    heard: int = 0
    since: float | None = None
    task: asyncio.Task[None] | None = None


class Pool:
    """Workers of one kind. `hire` starts the worker with a number and returns at once."""

    def __init__(self, name: str, hire: Callable[[int], Worker], size: Size, tries: int = 3) -> None:
        self.name, self.hire, self.size, self.tries = name, hire, size, tries
        self.queue: asyncio.PriorityQueue[Job] = asyncio.PriorityQueue()
        self.jobs, self.numbers = itertools.count(), itertools.count()
        self.members: dict[int, Member] = {}
        self.target = size.low
        self.done, self.lost, self.images, self.service, self.worked = 0, 0, 0, 0.0, 0.0
        self.failed_starts, self.hopeless, self.pause_ends = 0, 0, 0.0
        self.load = Load(size.cooldown)
        self.broken: Exception | None = None
        self.trouble = ""
        self.changed = asyncio.Event()

    def open(self) -> None:
        """Hire the first workers and begin to watch the load; it goes on until the loop's tasks are cancelled."""
        self._staff()
        self.governing = asyncio.get_running_loop().create_task(self._govern())

    async def staffed(self) -> None:
        """Wait for the first workers; raises what kept them from starting."""
        while sum(member.up for member in self.members.values()) < self.size.low:
            if self.broken:
                raise self.broken
            await self.changed.wait()

    def turn(self) -> int:
        """The next place in the queue, for a job that may have to be done again and shall not stand behind others."""
        return next(self.jobs)

    async def submit(self, call: Call, turn: int | None = None) -> list[Any]:
        """The results of a job; raises Poison where every worker that tried it was lost, and what `run` raises."""
        if self.broken:
            raise self.broken
        job = Job(self.turn() if turn is None else turn, call, asyncio.get_running_loop().create_future())
        self.queue.put_nowait(job)
        return await job.result

    def resize(self, size: Size) -> None:
        """Keep to other limits from now on."""
        self.size = size
        self.target = min(max(self.target, size.low), size.high)
        self._staff()
        self._tell()

    def state(self) -> State:
        """What the pool does now."""
        staying = [member for member in self.members.values() if not member.leaving]
        up = sum(member.up for member in staying)
        running = sum(member.since is not None for member in self.members.values())
        return State(self.name, up, len(staying) - up, self.target, self.size.low, self.size.high,
                     self.queue.qsize(), running, self.done, self.service, self.load.workers, self.lost,
                     self.images, self.trouble)

    def _staff(self) -> None:
        """Hire, or send away first those that are not up yet, then those without a job, then the newest."""
        staying = [member for member in self.members.values() if not member.leaving]
        for _ in range(self.target - len(staying)):
            self._hire()
        staying.reverse()
        staying.sort(key=lambda member: (member.up, member.since is not None))
        for member in staying[: max(0, len(staying) - self.target)]:
            member.leaving = True
            if member.since is None and member.task:
                member.task.cancel()

    def _hire(self) -> None:
        number = next(self.numbers)
        member = Member(self.hire(number))
        self.members[number] = member
        member.task = asyncio.get_running_loop().create_task(self._serve(number, member))

    async def _serve(self, number: int, member: Member) -> None:
        """The life of a worker."""
        try:
            await self._up(member)
            while not member.leaving:
                job = await self.queue.get()
                if member.heard == self.lost:
                    await self._attempt(member, job)
                else:  # some worker died, perhaps this one too, without a job; that would be no fault of this job
                    self.queue.put_nowait(job)
                    await self._ready(member)
        except Lost as loss:
            await self._failed_start(member, loss)
        except Exception as error:
            if self.done or self._anyone_but(member):  # others could start; the cause may be this one's node
                await self._failed_start(member, error)
            else:  # whoever waits for this pool must know
                self._break(error)
        finally:
            member.worker.kill()
            del self.members[number]
        if not self.broken:
            self._staff()

    async def _up(self, member: Member) -> None:
        """It starts, for the first time or again."""
        await self._ready(member)
        self.failed_starts, self.hopeless, self.trouble = 0, 0, ""
        self._tell()

    async def _ready(self, member: Member) -> None:
        member.up, member.heard = False, self.lost
        await member.worker.ready()
        member.up = member.served = True

    def _anyone_but(self, member: Member) -> bool:
        """Whether others are up, or were and may be again."""
        return any(other.served for other in self.members.values() if other is not member)

    async def _attempt(self, member: Member, job: Job) -> None:
        try:
            with self._busy(member):
                result = await member.worker.run(job.call)
        except Lost as loss:
            self.lost += 1
            self._again(job, loss)
            if not member.leaving:
                await self._up(member)
        except Failed as failure:
            self._again(job, failure)
        except Exception as error:
            _settle(job, error)
        else:
            self.images += job.call.images
            _settle(job, result)

    @contextmanager
    def _busy(self, member: Member) -> Iterator[None]:
        now = asyncio.get_running_loop().time
        member.since = start = now()
        try:
            yield
            self.service += (now() - start - self.service) * (SMOOTH if self.done else 1.0)
            self.done += 1
        finally:
            member.since, self.worked = None, self.worked + now() - start

    def _again(self, job: Job, loss: Lost | Failed) -> None:
        job.losses.append(loss)
        if len(job.losses) < self.tries or job.blame <= self.tries - NODE / 2:  # blame has to ask after nodes
            self.queue.put_nowait(job)
        elif isinstance(loss, Failed):
            _settle(job, loss)
        else:
            what = f"{len(job.losses)} workers of {self.name} were lost over it"
            _settle(job, Poison(f"{what}; the last one {loss}"))

    async def _failed_start(self, member: Member, cause: Exception) -> None:
        """Let some time pass before the next one is hired; where nobody else can do the work, give up after a few such
        pauses. Those that fail together, as after a network did, count once."""
        now, self.trouble, member.served = asyncio.get_running_loop().time(), str(cause), False
        if now >= self.pause_ends:
            self.failed_starts += 1
            self.hopeless = 0 if self._anyone_but(member) else self.hopeless + 1
            self.pause_ends = now + min(2.0**self.failed_starts, LONGEST_PAUSE)
        if self.hopeless >= STARTS:
            self._break(WorkerError(
                f"{STARTS} times in a row no worker of {self.name} could start; the last one that tried {cause}. Look "
                f"at its log ({LOGS})."
            ))
        else:
            await asyncio.sleep(self.pause_ends - now)

    def _break(self, error: Exception) -> None:
        """Nothing will be done here any more: tell all who wait."""
        self.broken = error
        self._tell()
        while not self.queue.empty():
            _settle(self.queue.get_nowait(), error)

    def _tell(self) -> None:
        """Wake those who wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def _govern(self) -> None:
        """Follow the load."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(PERIOD)
            self.load.note(now(), self._worked(now()))
            goal = self.load.goal(now(), self.queue.qsize() * self.service, self.target, self.size)
            if goal != self.target:
                self.target = goal
                self._staff()

    def _worked(self, now: float) -> float:
        """Seconds that the workers were busy, all in all."""
        return self.worked + sum(now - member.since for member in self.members.values() if member.since is not None)


def _settle(job: Job, outcome: Any) -> None:
    """Give the one who waits his result or error, if he still waits."""
    if job.result.done():
        return
    if isinstance(outcome, Exception):
        job.result.set_exception(outcome)
    else:
        job.result.set_result(outcome)
