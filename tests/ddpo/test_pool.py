"""Pools on virtual time: who gets which job, what happens to the jobs of the dead, growth and shrinking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from ddpo.errors import DdpoError, WorkerError
from ddpo.pool import Pool
from ddpo.sizing import Size, wanted
from ddpo.work import Call, Failed, Lost, Poison, numbered
from deploy.virtual import VirtualControl

STILLBORN, UNLOADABLE = -1.0, -2.0


class Sleeper:
    """A worker that sleeps as long as its job says, dies over the jobs it is told to, or without one, takes its time
    to start, and is started again by whoever asks whether it is there."""

    def __init__(self, number: int, deadly: Callable[[int, int], bool], start: float) -> None:
        self.number, self.deadly, self.start = number, deadly, start
        self.killed, self.dead, self.with_node, self.failing = False, True, False, 0
        self.did: list[int] = []

    async def ready(self) -> None:
        if self.start == STILLBORN:
            raise Lost("out of memory")
        if self.start == UNLOADABLE:
            raise DdpoError("did not load")
        if self.dead:
            await asyncio.sleep(self.start)
        self.dead = False

    async def run(self, call: Call) -> list[int]:
        name, seconds = call.arguments
        if not self.dead:
            await asyncio.sleep(seconds)
        if self.dead or self.deadly(self.number, name):
            self.dead = True
            raise Lost("died", lambda: self.with_node)
        if self.failing:
            self.failing -= 1
            raise Failed("no GPU any more")
        self.did.append(name)
        return [self.number]

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def control() -> Iterator[VirtualControl]:
    control = VirtualControl()
    yield control
    control.close()


class Crew:
    """A pool of sleepers that remembers everyone it hired."""

    def __init__(self, control: VirtualControl, size: Size, deadly=lambda worker, job: False, start=0.0) -> None:
        self.control, self.hired = control, []
        self.pool = Pool("sleepers", self._hire, size)
        self.deadly, self.start = deadly, start
        control.call(self.pool.open)

    def _hire(self, number: int) -> Sleeper:
        self.hired.append(Sleeper(number, self.deadly, self.start))
        return self.hired[-1]

    def submit(self, name: int, seconds: float = 1.0):
        return self.control.spawn(self.pool.submit(Call("sleep", (name, seconds))))


def test_the_least_loaded_worker_gets_the_next_job(control):
    crew = Crew(control, Size(2, 2))
    jobs = [crew.submit(0, 10.0), *(crew.submit(name) for name in range(1, 10))]
    control.collect(jobs, 60, "jobs")
    assert [worker.did for worker in crew.hired] == [[0], list(range(1, 10))]
    assert control.loop.time() == pytest.approx(10.0, abs=0.1)


def test_the_job_of_a_dead_worker_is_done_by_another_before_younger_ones(control):
    deaths = []

    def deadly(worker: int, job: int) -> bool:
        deaths.append(worker) if job == 0 else None
        return job == 0 and len(deaths) == 1

    crew = Crew(control, Size(1, 1), deadly, start=2.0)
    control.collect([crew.submit(name) for name in range(3)], 60, "jobs")
    assert crew.hired[0].did == [0, 1, 2]
    assert control.loop.time() == pytest.approx(2 + 1 + 2 + 3, abs=0.1)
    assert crew.pool.state().lost == 1


def test_a_job_that_kills_whoever_takes_it_is_poison_and_the_others_are_done(control):
    crew = Crew(control, Size(3, 3), lambda worker, job: job == 1)
    jobs = [crew.submit(name) for name in range(6)]
    control.sleep(30)
    with pytest.raises(Poison, match="3 workers of sleepers were lost over it; the last one died"):
        jobs[1].result()
    assert isinstance(jobs[1].exception(), DdpoError)  # which the command line tells without a traceback
    assert [job.done() and not job.exception() for job in jobs] == [True, False, True, True, True, True]


def test_a_job_is_not_blamed_for_workers_that_died_without_one(control):
    crew = Crew(control, Size(5, 5), start=20.0)
    control.collect([crew.submit(name) for name in range(5)], 60, "jobs")
    for worker in crew.hired[:4]:  # whose node went, say
        worker.dead = True
    jobs = [crew.submit(name) for name in range(5, 10)]
    control.collect(jobs, 60, "jobs")
    assert crew.pool.state().lost == 1  # the first that was asked; after that, all were asked whether they are there
    assert crew.hired[4].did[-5:] == [5, 6, 7, 8, 9]  # none of them waited for the others to start again
    control.sleep(25)
    assert crew.pool.state().workers == 5


def test_a_worker_that_goes_with_its_node_counts_a_third(control):
    crew = Crew(control, Size(1, 1), lambda worker, job: job == 0)
    crew.hired[0].with_node = True
    job = crew.submit(0)
    control.sleep(60)
    with pytest.raises(Poison, match="9 workers of sleepers were lost over it"):
        job.result()


def test_a_job_that_fails_is_tried_three_times_and_then_the_one_who_waits_hears_why(control):
    crew = Crew(control, Size(2, 2))
    crew.hired[0].failing = 2
    control.collect([crew.submit(name) for name in range(4)], 60, "jobs")
    assert sorted(crew.hired[0].did + crew.hired[1].did) == [0, 1, 2, 3]
    crew.hired[0].failing = crew.hired[1].failing = 3
    job = crew.submit(9)
    control.sleep(10)
    with pytest.raises(Failed, match="no GPU any more"):
        job.result()


def test_what_is_done_again_keeps_its_turn(control):
    crew = Crew(control, Size(1, 1))
    turn = crew.pool.turn()
    jobs = [crew.submit(name) for name in range(3)]
    control.sleep(0.5)  # 0 is in hand
    jobs.append(control.spawn(crew.pool.submit(Call("sleep", (9, 1.0)), turn)))
    control.collect(jobs, 60, "jobs")
    assert crew.hired[0].did == [0, 9, 1, 2]


def test_an_error_of_the_job_goes_to_the_one_who_waits_and_the_worker_goes_on(control):
    crew = Crew(control, Size(1, 1))

    def broken(worker: int, job: int) -> bool:
        if job == 0:
            raise DdpoError("contract")
        return False

    crew.deadly = crew.hired[0].deadly = broken
    first, second = crew.submit(0), crew.submit(1)
    control.sleep(3)
    with pytest.raises(DdpoError, match="contract"):
        first.result()
    assert second.result() == [0]


def test_a_pool_whose_workers_all_die_at_their_start_says_so_to_those_who_wait(control):
    crew = Crew(control, Size(2, 2), start=STILLBORN)
    job = crew.submit(0)
    control.sleep(120)
    with pytest.raises(WorkerError, match="5 times in a row no worker of sleepers could start; the last"):
        job.result()
    assert len(crew.hired) == 10  # five times two, after 2, 4, 8 and 16 seconds


def test_one_that_restarts_is_waited_for_whoever_else_cannot_start(control):
    crew = Crew(control, Size(1, 1), lambda worker, job: job == 7 and control.loop.time() < 200, start=60.0)
    control.sleep(61)
    crew.start = STILLBORN
    control.call(crew.pool.resize, Size(2, 2))
    control.sleep(60)
    job = crew.submit(7)  # its worker dies over it, twice, and takes a minute to come back
    control.sleep(10)
    assert crew.pool.state().workers == 0
    control.collect([job], 600, "job")
    assert crew.hired[0].did == [7]


def test_those_that_cannot_start_again_together_count_once(control):
    crew = Crew(control, Size(8, 8))
    control.collect([crew.submit(name) for name in range(8)], 60, "jobs")
    crew.start = STILLBORN
    for worker in crew.hired:
        worker.start, worker.dead = STILLBORN, True
    job = crew.submit(8)
    control.sleep(20)
    crew.start = 0.0
    control.collect([job], 60, "job")
    assert crew.pool.state().workers == 8


def test_where_others_are_up_a_worker_that_cannot_start_is_tried_now_and_then(control):
    crew = Crew(control, Size(1, 1))
    crew.start = STILLBORN
    control.call(crew.pool.resize, Size(2, 2))
    jobs = [crew.submit(name, 5.0) for name in range(40)]
    control.collect(jobs, 60, "jobs")
    assert crew.hired[0].did == list(range(40))
    assert 5 <= len(crew.hired) <= 9  # after 2, 4, 8, ... seconds


def test_one_that_cannot_load_its_model_ends_nothing_where_others_could(control):
    crew = Crew(control, Size(1, 1))
    crew.start = UNLOADABLE
    control.call(crew.pool.resize, Size(2, 2))
    control.sleep(5)
    assert crew.pool.state().trouble == "did not load" and "did not: did not load" in str(crew.pool.state())
    control.collect([crew.submit(name, 5.0) for name in range(4)], 60, "jobs")
    assert crew.hired[0].did == list(range(4))
    crew.start = 0.0
    control.sleep(60)
    assert crew.pool.state().trouble == "" and crew.pool.state().workers == 2


def test_one_that_cannot_load_its_model_breaks_a_pool_that_never_worked(control):
    crew = Crew(control, Size(0, 2))
    crew.start = UNLOADABLE
    control.call(crew.pool.resize, Size(2, 2))
    job = crew.submit(0)
    control.sleep(5)
    with pytest.raises(DdpoError, match="did not load"):
        job.result()


def test_scaled_by_hand_a_leaving_worker_finishes_its_job(control):
    crew = Crew(control, Size(3, 3))
    jobs = [crew.submit(name, 5.0) for name in range(3)]
    control.sleep(1)
    control.call(crew.pool.resize, Size(1, 1))
    control.sleep(1)
    assert crew.pool.state().workers == 1
    assert not any(worker.killed for worker in crew.hired)
    control.collect(jobs, 60, "jobs")
    assert [worker.killed for worker in crew.hired].count(True) == 2
    control.call(crew.pool.resize, Size(4, 4))
    control.sleep(1)
    assert crew.pool.state().workers == 4


def test_a_pool_that_is_made_smaller_while_it_starts_has_its_first_workers_sooner(control):
    crew = Crew(control, Size(1, 1))
    crew.start = 100.0
    control.call(crew.pool.resize, Size(2, 2))
    ready = control.spawn(crew.pool.staffed())
    control.sleep(5)
    assert not ready.done()
    control.call(crew.pool.resize, Size(1, 1))
    control.sleep(1)
    assert ready.done()


def test_a_pool_grows_under_load_to_what_it_needs_and_shrinks_after_the_cool_down(control):
    crew = Crew(control, Size(1, 10, cooldown=20.0))

    async def arrivals(every: float, count: int) -> None:
        for name in range(count):
            crew.submit(name, 4.0)
            await asyncio.sleep(every)

    control.spawn(arrivals(1.0, 200))  # four workers' work
    control.sleep(195)
    busy = crew.pool.state()
    assert 5 <= busy.workers <= 7
    assert busy.waiting <= 1
    control.sleep(60)
    assert crew.pool.state().workers == 1


@pytest.mark.parametrize(
    ("load", "backlog", "present", "goal"),
    [
        (1, 0, 1, 2), (4, 0, 4, 5), (4, 3, 4, 9), (3, 0, 4, 4),
        (2, 0, 4, 4), (0.5, 0, 4, 1), (0, 0, 4, 1), (50, 0, 10, 10),
    ],
)
def test_how_many_workers_the_work_needs(load, backlog, present, goal):
    assert wanted(load, backlog, present, Size(1, 10)) == goal


def test_calls_of_a_long_run_share_names_and_those_of_a_short_one_do_not():
    assert [numbered(number, 44) for number in (0, 7, 44)] == ["0", "7", "44"]
    assert [numbered(number, 250) for number in (0, 2, 3, 250)] == ["0..2", "0..2", "3..5", "249..251"]
    assert len({numbered(number, 10**6) for number in range(0, 10**6, 997)}) <= 101
