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

from actors import ray_pool
from actors.pool import LocalSamplers
from actors.prompts import Draw
from actors.sampler import Sampler
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import Run
from ddpo.errors import DeliveryError
from ddpo.runfile import parse
from ddpo.types import Policy
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
    prepared = prepare(run)
    rewards = LocalRewards(run, prepared.reward_sources)
    return learn(run, (LocalSamplers(run, prepared.base), rewards, LocalLearner(run, prepared.base)), log)


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


def deaf(sampler: type[Sampler]) -> type[Sampler]:
    """A sampler that keeps the first policy it was sent, whatever comes after."""

    class Deaf(sampler):
        def _load(self, policy: Policy) -> str:
            return self.loaded[1] if self.loaded else super()._load(policy)

    return Deaf


@pytest.mark.parametrize(("lag", "step"), [(0, 2), (2, 4)])
def test_a_sampler_that_skips_a_load_is_caught_in_the_first_step_it_would_spoil(make_run, monkeypatch, lag, step):
    monkeypatch.setattr("actors.pool.Sampler", deaf(Sampler))
    learned: list[int] = []
    first = 8 * (step - 1)
    with pytest.raises(DeliveryError, match=rf"images {first}\.\.{first + 3} were drawn by weights [0-9a-f]{{12}} as "
                       rf"version 1; published within lag {lag} are: .*A sampler did not load what it was sent"):
        in_process(make_run(STEPS, f"lag={lag}"), lambda scored, report: learned.append(report.version))
    assert learned == list(range(1, step))


@pytest.mark.ray
def test_a_sampler_that_skips_a_load_is_caught_on_ray(make_run, ray_cluster, monkeypatch):
    monkeypatch.setattr(ray_pool, "SamplerActor", deaf(ray_pool.SamplerActor))
    run = make_run(STEPS, "lag=2", "actors.count=2", "name=deaf")
    with pytest.raises(DeliveryError, match=r"as version 1; published within lag 2 are: .*A sampler did not load"):
        learn(run, cluster.pools(prepare(run)))


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
