"""What a group of ranks outlives, on virtual time: deaths at the start and over any work, and one hang."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ddpo.errors import DeadlineError, WorkerError
from ddpo.work import Failed, Gone, Lost
from deploy.virtual import VirtualControl
from learner.recovery import Hung, outlived, stand


class Trio:
    """Three ranks whose starts, whose work and what rebuilds them go as they are told: an exception is raised, the rest
    returned."""

    def __init__(self, starts: Sequence[Any] = (), work: Sequence[Any] = (), rebuilds: Sequence[Any] = ()) -> None:
        self.step, self.actors = 4, list[Any]()
        self.starts, self.outcomes, self.rebuilds = list(starts), list(work), list(rebuilds)
        self.lives, self.rebuilt = 0, 0

    def start(self) -> None:
        self.lives, self.actors = self.lives + 1, ["a", "b", "c"]

    async def up(self) -> None:
        if self.starts:
            raise self.starts.pop(0)

    def rebuild(self) -> None:
        self.rebuilt += 1
        self.start()
        if self.rebuilds:
            raise self.rebuilds.pop(0)

    def end(self) -> None:
        self.actors = []

    def work(self) -> str:
        assert self.actors
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def control() -> Iterator[VirtualControl]:
    control = VirtualControl()
    yield control
    control.close()


def started(*work: Any, rebuilds: Sequence[Any] = ()) -> Trio:
    group = Trio(work=work, rebuilds=rebuilds)
    group.start()
    return group


def test_a_learner_that_dies_at_its_start_is_started_again_after_growing_pauses(control):
    group = Trio(starts=[Lost("was preempted")] * 4)
    control.collect([control.spawn(stand(group))], 100, "")
    assert group.lives == 5 and group.actors and control.loop.time() == pytest.approx(2 + 4 + 8 + 16)


def test_the_fifth_death_at_the_start_ends_the_run_with_its_cause(control):
    group = Trio(starts=[Lost("was preempted")] * 4 + [Lost("did not start: no memory")])
    with pytest.raises(WorkerError, match=r"at its start 5 times, .* the last time it did not start: no memory"):
        control.collect([control.spawn(stand(group))], 100, "")
    assert not group.actors


def test_what_no_other_start_mends_is_not_tried_again(control):
    group = Trio(starts=[WorkerError("a worker runs other sources than this driver")])
    with pytest.raises(WorkerError, match="other sources"):
        control.collect([control.spawn(stand(group))], 100, "")
    assert group.lives == 1


def test_work_is_done_again_by_a_rebuilt_group_up_to_two_deaths():
    group = started(Lost("died"), Lost("died"), "done")
    assert outlived(group, group.work) == "done" and group.rebuilt == 2
    group = started(Lost("died"), Lost("died"), Lost("was killed: out of memory"), "done")
    with pytest.raises(WorkerError, match=r"died 3 times in step 5: was killed: out of memory\. `--resume`"):
        outlived(group, group.work)
    assert not group.actors


def test_what_was_lost_is_made_again_and_ranks_that_live_go_on():
    group, renewed = started(Gone("lost with a node"), "done"), []
    assert outlived(group, group.work, lambda: renewed.append(1)) == "done"
    assert renewed == [1] and group.rebuilt == 0


def test_what_is_lost_again_and_again_is_no_death():
    group, renewed = started(*[Gone("lost with a node")] * 6, Lost("died"), Lost("died"), "done"), []
    assert outlived(group, group.work, lambda: renewed.append(1)) == "done" and len(renewed) == 6
    group = started(*[Gone("lost with a node")] * 7, "done")
    with pytest.raises(WorkerError, match=r"^what the learner needs was lost 7 times in step 5: lost with a node\."):
        outlived(group, group.work)


def test_what_nobody_foresaw_is_tried_once_more_by_new_processes(capsys):
    group = started(Failed("CUDA error: unspecified launch failure"), "done")
    assert outlived(group, group.work) == "done" and group.rebuilt == 1
    assert "launch failure\nThe learner's ranks are ended and started again" in capsys.readouterr().err
    group = started(*[Failed("CUDA error")] * 2)
    with pytest.raises(Failed, match="CUDA error"):
        outlived(group, group.work)


def test_ranks_that_hang_are_ended_and_the_step_is_done_once_more(capsys):
    group = started(Hung("step 5 was not learned: no rank has finished a micro-batch for 3 s"), "done")
    assert outlived(group, group.work) == "done" and group.rebuilt == 1
    said = capsys.readouterr().err
    assert said.startswith("step 5 was not learned: no rank has finished a micro-batch for 3 s. The learner's")


def test_a_second_hang_ends_the_run():
    group = started(*[Hung("step 5 was not learned: no rank has finished a micro-batch for 3 s")] * 2, "done")
    with pytest.raises(DeadlineError, match=r"3 s, nor have ranks that were started once more for it\. Raise it if"):
        outlived(group, group.work)
    assert not group.actors and group.rebuilt == 1


def test_a_rank_that_dies_while_the_group_is_rebuilt_counts_as_one_in_the_step():
    group = started(Lost("died"), "done", rebuilds=[Lost("died while it restored")])
    assert outlived(group, group.work) == "done" and group.rebuilt == 2
