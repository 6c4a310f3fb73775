"""A learner of two ranks on Ray: the steps that one rank takes, and exactly its own numbers whichever rank dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny
from learning import in_process, learn, local_pools
from two_ranks import Gradient, Led, record

from actors.prompts import Draw
from ddpo.errors import DeadlineError, DeliveryError, WorkerError
from ddpo.runfile import parse
from ddpo.weights import digest, unpack
from deploy import cluster
from deploy.prepare import prepare

pytestmark = [pytest.mark.ray, pytest.mark.numbers]
RANKS = ("learner.ranks=2", "steps=4", "lag=1")


@pytest.fixture(scope="module")
def ray_cluster(model: Path) -> Iterator[None]:
    """One cluster for the runs of this module, with room for two ranks, a sampler and a reward worker."""
    with cluster.connected(parse({**tiny.run(model), "actors": {"count": 2, "batch": 4}}, [], "test")):
        yield


@pytest.fixture(scope="module")
def recorded(model: Path, ray_cluster: None) -> tuple[dict[str, np.ndarray], list[Gradient]]:
    """Final weights of a run of two ranks that nothing happened to, and the gradients of its minibatches."""
    import ray

    run = parse(tiny.run(model), [*RANKS, "name=two"], "test")
    with cluster.pools(prepare(run)) as pools:
        rank = pools[2].actors[0]
        ray.get(rank.__ray_call__.remote(record()), timeout=60)
        learn(run, pools)
        return unpack(pools[2].policy()), ray.get(rank.__ray_call__.remote(lambda rank: rank.gradients), timeout=60)


@pytest.fixture(scope="module")
def undisturbed(recorded: tuple[dict[str, np.ndarray], list[Gradient]]) -> dict[str, np.ndarray]:
    """Final weights of a run of two ranks that nothing happened to."""
    return recorded[0]


def test_two_ranks_take_the_steps_of_one(make_run, recorded):
    weights, gradients = recorded
    learner = (local := local_pools(run := make_run("steps=4", "lag=1")))[2].learner
    learner.ranks = Led(learner.denoiser.trainable.values(), gradients)
    assert learn(run, local) == digest(weights) and len(gradients) == 4 * 2


def doom(step: int, end: signal.Signals = signal.SIGKILL) -> Callable[[Any], None]:
    """What makes a rank die, or stop, in the midst of a step, while the other one waits for its gradients."""

    def take(learner: Any) -> None:
        proper = learner.ranks.sum_gradients

        def sum_gradients(weights: Any) -> None:
            if learner.learner.step + 1 == step:
                os.kill(os.getpid(), end)
            proper(weights)

        learner.ranks.sum_gradients = sum_gradients

    return take


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_the_midst_of_a_step_changes_nothing(make_run, undisturbed, victim):
    import ray

    run, learned = make_run(*RANKS, f"name=killed-{victim}"), []
    with cluster.pools(prepare(run)) as pools:
        first = pools[2].actors
        pids = ray.get([actor.__ray_call__.remote(lambda actor: os.getpid()) for actor in first], timeout=60)
        ray.get(first[victim].__ray_call__.remote(doom(step=3)), timeout=60)
        assert learn(run, pools, lambda scored, report: learned.append(report.version)) == digest(undisturbed)
        assert pools[2].lives == 2 and learned == [1, 2, 3, 4]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_batch_in_another_order_is_refused_by_all_ranks_at_once(make_run, ray_cluster):
    run = make_run(*RANKS, "name=mixed-up")
    with cluster.pools(prepared := prepare(run)) as (samplers, rewards, learner):
        scored = rewards.score(samplers.sample(Draw(run, prepared.prompts)(0), learner.policy())).wait()
        with pytest.raises(DeliveryError, match="image 4 where image 0 is due"):
            learner.update(replace(scored, chunks=scored.chunks[::-1]), np.ones(8))
        assert learner.update(scored, np.ones(8)).version == 1 and learner.lives == 1


def test_lost_before_the_first_step_or_hung_in_one_they_are_rebuilt_but_not_of_other_sources(
    make_run, undisturbed, capsys, monkeypatch
):
    import ray

    run = make_run(*RANKS, "name=hung", "learner.timeout=10")
    with cluster.pools(prepare(run)) as pools:
        learner = pools[2]
        ray.kill(learner.actors[0])
        assert learner.policy().version == 0 and learner.lives == 2
        ray.get(learner.actors[1].__ray_call__.remote(doom(3, signal.SIGSTOP)), timeout=60)
        assert learn(run, pools) == digest(undisturbed) and learner.lives == 3
        said = capsys.readouterr().err
        assert "step 3 was not learned: no rank has finished a micro-batch for learner.timeout = 10 s. The" in said
        monkeypatch.setattr("deploy.staff.fingerprint", lambda: "of another checkout")
        ray.kill(learner.actors[0])
        with pytest.raises(WorkerError, match="runs other sources than this driver"):
            learner.restore(4, learner.state(), learner.known)


def slow(seconds: float, hangs: int) -> Callable[[Any], None]:
    """What makes a rank take so long for every micro-batch, and hang after so many."""

    def take(actor: Any) -> None:
        def moved() -> None:
            time.sleep(1000 if actor.ranks.finished == hangs else seconds)
            actor._moved()

        actor.ranks.moved = moved

    return take


def test_a_step_may_take_longer_than_the_timeout_if_it_moves_on_and_one_that_stops_is_done_again(
    make_run, ray_cluster, capsys
):
    import ray

    options = ("learner.micro_batch=4", "learner.timeout=4", "lag=1")  # ten micro-batches a step
    expected = in_process(make_run(*options))
    with cluster.pools(prepare(run := make_run(*options, "name=slow"))) as pools:
        learner, seen = pools[2], []
        ray.get(learner.actors[0].__ray_call__.remote(slow(0.8, hangs=15)), timeout=60)
        assert learn(run, pools, lambda scored, report: seen.append((learner.lives, report.seconds))) == expected
    (lives, seconds), (lives_at_the_end, _) = seen
    assert seconds > 8 and (lives, lives_at_the_end) == (1, 2)
    assert capsys.readouterr().err.count("step 2 was not learned: no rank has finished a micro-batch for ") == 1


def test_ranks_that_find_no_room_say_what_they_wait_for(make_run, ray_cluster):
    run = make_run(*RANKS, "name=cramped", "learner.cpus=3", "ray.timeout=5")
    with (
        pytest.raises(DeadlineError, match=r"after ray\.timeout = 5 s the cluster has not started .*the learner"),
        cluster.pools(prepare(run)),
    ):
        pass

