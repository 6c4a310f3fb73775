"""Property 2: a run is a function of its config and seed, on Ray and in one process, whatever dies on the way.
Property 3: delivery is proven; a sampler that skips a load is caught before anything is learned from what it drew."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import seeing
import tiny

from actors.pool import LocalSamplers
from actors.prompts import Draw
from actors.sampler import Sampler
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import Run
from ddpo.errors import DeliveryError
from ddpo.runfile import parse
from deploy import cluster
from deploy.prepare import prepare
from learner.learner import LocalLearner
from rewards.pool import LocalRewards

STEPS = "steps=4"


def learn(run: Run, pools: tuple[Any, Any, Any], log: Callable[..., None] = lambda scored, report: None) -> str:
    samplers, rewards, learner = pools
    policies = loop.Policies(run.lag, [learner.policy()])
    draw = Draw(run, prepare(run).prompts)
    loop.run(run.steps, draw, samplers, rewards, advantage(run), learner, policies, log)
    return learner.policy().digest


def in_process(run: Run, log: Callable[..., None] = lambda scored, report: None) -> str:
    return learn(run, local_pools(run), log)


def local_pools(run: Run) -> tuple[LocalSamplers, LocalRewards, LocalLearner]:
    prepared = prepare(run)
    rewards = LocalRewards(run, prepared.reward_sources)
    return LocalSamplers(run, prepared.base), rewards, LocalLearner(run, prepared.base)


@pytest.fixture(scope="module")
def expected() -> dict[int, str]:
    """Digests of the runs in this process, by lag, filled on demand."""
    return {}


@pytest.fixture(scope="module")
def ray_cluster(model: Path) -> Iterator[None]:
    """One cluster for the runs of this module."""
    with cluster.connected(parse({**tiny.run(model), "actors": {"count": 4, "batch": 4}}, [], "test")):
        yield


@pytest.mark.parametrize("lag", [0, 2])
def test_every_trajectory_is_min_d_lag_updates_old(make_run, lag):
    lags: list[int] = []
    in_process(make_run(STEPS, f"lag={lag}"), lambda scored, report: lags.append(report.lag))
    assert lags == [min(batch, lag) for batch in range(4)]


def test_the_same_config_gives_the_same_digest_and_another_seed_another(make_run):
    first = in_process(make_run())
    assert in_process(make_run()) == first
    assert in_process(make_run("seed=1")) != first


def deafen() -> Callable[[Sampler], None]:
    """What makes a sampler keep the first policy it is sent, whatever comes after; travels to one on Ray."""

    def take(sampler: Sampler) -> None:
        load = sampler._load
        sampler._load = lambda policy: sampler.loaded[1] if sampler.loaded else load(policy)

    return take


@pytest.mark.parametrize(("lag", "step"), [(0, 2), (2, 4)])
def test_a_sampler_that_skips_a_load_is_caught_in_the_first_step_it_would_spoil(make_run, lag, step):
    run, learned = make_run(STEPS, f"lag={lag}"), []
    samplers, _, learner = local = local_pools(run)
    deafen()(samplers.sampler)
    with pytest.raises(DeliveryError, match=rf"images {8 * step - 8}\.\.{8 * step - 5} were drawn by weights "
                       rf"[0-9a-f]{{12}} as version 1; published within lag {lag} .* did not load what it was sent"):
        learn(run, local, lambda scored, report: learned.append(report.version))
    assert learned == list(range(1, step)) and learner.step == step - 1


@pytest.mark.ray
def test_one_of_two_samplers_on_ray_that_skips_a_load_is_caught(make_run, ray_cluster):
    import ray

    run = make_run(STEPS, "lag=2", "actors.count=2", "name=deaf")
    samplers, _, learner = on_ray = cluster.pools(prepare(run))
    ray.get(samplers.actors[1].__ray_call__.remote(deafen()), timeout=60)
    with pytest.raises(DeliveryError, match=r"images 28\.\.31 were drawn by .* as version 1; .* did not load"):
        learn(run, on_ray)
    assert learner.step == 3


@pytest.mark.ray
@pytest.mark.parametrize(("lag", "samplers"), [(0, 1), (0, 3), (2, 1), (2, 3)])
def test_on_ray_and_in_one_process_alike(make_run, ray_cluster, expected, lag, samplers):
    run = make_run(STEPS, f"lag={lag}", f"actors.count={samplers}", f"name=alike-{lag}-{samplers}")
    on_ray = learn(run, cluster.pools(prepare(run)))
    expected.setdefault(lag, in_process(run))
    assert on_ray == expected[lag]


@pytest.mark.ray
@pytest.mark.parametrize("algorithm", ["ddpo-is", "rwr"])
def test_a_reward_that_is_a_model_gives_the_same_numbers_on_ray(make_run, ray_cluster, tmp_path, algorithm):
    llava, bert = seeing.llava(tmp_path / "llava"), seeing.bert(tmp_path / "bert")
    seen = f"{{kind='alignment', model='{llava}', compare='{bert}', layer=1, max_tokens=4, workers=2}}"
    run = make_run("lag=1", f"rewards={{seen={seen}}}", f"learner.algorithm={algorithm}", f"name=seen-{algorithm}")
    assert learn(run, cluster.pools(prepare(run))) == in_process(run)


@pytest.mark.ray
@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("victim", ["sampler-0", "reward:jpeg-0", "learner-1"])
def test_a_killed_process_changes_nothing(make_run, ray_cluster, expected, lag, victim):
    run = make_run(STEPS, f"lag={lag}", f"name=killed-{lag}-{victim.replace(':', '-')}")
    pids: list[int] = []

    def kill(scored: Any, report: Any) -> None:
        if report.version == 1:
            pids.append(_pid(f"{run.name}/{victim}"))
        if report.version == 2:
            os.kill(pids[0], signal.SIGKILL)

    on_ray = learn(run, cluster.pools(prepare(run)), kill)
    expected.setdefault(lag, in_process(run))
    assert not psutil.pid_exists(pids[0])
    assert on_ray == expected[lag]


def _pid(name: str) -> int:
    import ray

    return ray.get(ray.get_actor(name).__ray_call__.remote(lambda actor: os.getpid()), timeout=60)
