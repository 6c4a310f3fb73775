"""Property 2: a run is a function of its config and seed, on Ray and in one process, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import seeing
import strangers
import tiny

from actors.pool import LocalSamplers
from actors.prompts import Draw
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import RewardConfig, Run
from ddpo.runfile import parse
from deploy import cluster
from deploy.prepare import prepare
from learner.learner import LocalLearner
from rewards.pool import LocalRewards
from rewards.worker import RewardWorker

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
def test_a_reward_that_a_server_computes_gives_the_same_numbers_on_ray(make_run, ray_cluster, expected, monkeypatch):
    monkeypatch.setenv("DDPO_REWARD_TOKEN", "x" * 16)
    with strangers.serving(RewardWorker("jpeg", RewardConfig(), ""), token="x" * 16) as (url, _):
        far = f"{{kind='http', url='{url}', workers=2, cpus=0.1, batch=3}}"
        run = make_run(STEPS, f"rewards={{jpeg={far}}}", "name=far")
        on_ray = learn(run, cluster.pools(prepare(run)))
    expected.setdefault(0, in_process(make_run(STEPS)))
    assert on_ray == expected[0]


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
