"""What is said of a wait for room on the cluster: at the start, and of workers that are added or restarted later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from ddpo.pool import Pool, State
from ddpo.sizing import Size
from ddpo.work import Call
from deploy import starting
from deploy.starting import resources, tell_of_lacks
from deploy.virtual import VirtualControl


class Waiting:
    """A worker that finds room after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def ready(self) -> None:
        await asyncio.sleep(self.seconds)

    async def run(self, call: Call) -> list[Any]:
        return [call]

    def kill(self) -> None:
        pass


@pytest.fixture
def control() -> Iterator[VirtualControl]:
    control = VirtualControl()
    yield control
    control.close()


async def words(states: Sequence[State], learner: bool) -> str:
    return ", ".join([*(f"{state.starting} of {state.target} {state.name}" for state in states), *["it"] * learner])


@pytest.fixture
def told(control, capsys):
    """told(seconds, waits, learner): what is said of a pool whose workers take so long to find room."""

    def tell(seconds: float, waits: list[float], learner: Future[None]) -> str:
        pool = Pool("samplers", lambda number: Waiting(waits[number]), Size(len(waits), len(waits)))
        control.call(pool.open)
        control.spawn(tell_of_lacks([pool], SimpleNamespace(standing=learner), words))
        control.sleep(seconds)
        return capsys.readouterr().err

    return tell


def standing() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def test_a_worker_that_waits_for_room_later_is_told_of_once(told):
    said = told(600, [0.0, 500.0, 1000.0], standing())
    assert said == "For 60 s the run has waited for 2 of 3 samplers. It goes on with those that are there.\n"


def test_those_that_come_soon_are_not_told_of(told):
    assert told(600, [0.0, starting.LATER - 10], standing()) == ""


def test_so_is_a_learner_that_is_rebuilt(told):
    assert told(600, [0.0], Future()) == "For 60 s the run has waited for it. It goes on with those that are there.\n"


def test_while_the_head_is_away_it_is_asked_again(control, capsys):
    asked = []

    async def late(states: Sequence[State], learner: bool) -> str:
        asked.append(control.loop.time())
        if len(asked) < 3:
            raise ConnectionError
        return "them"

    control.spawn(tell_of_lacks([], SimpleNamespace(standing=Future()), late))
    control.sleep(300)
    assert asked == [60, 65, 70] and capsys.readouterr().err.startswith("For 60 s the run has waited for them.")


def test_the_clusters_accelerators_are_named():
    def node(kind: str | None, gpus: float, alive: bool = True) -> dict[str, Any]:
        labels = {"ray.io/accelerator-type": kind} if kind else {}
        return {"Alive": alive, "Labels": labels, "Resources": {"CPU": 8.0, "GPU": gpus}}

    nodes = [node("T4", 1), node("A100", 8), node("A100", 8), node(None, 0), node("H100", 8, alive=False)]
    assert resources({"CPU": 32.0, "GPU": 17.0}, nodes) == "32 CPU, 17 GPU (16 x A100, 1 x T4)"
    assert resources({"CPU": 4.0}, [node(None, 0)]) == "4 CPU, 0 GPU"
