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
import strangers
import tiny
from learning import in_process, learn, local_pools, on_cluster

from actors.sampler import Sampler
from ddpo.config import RewardConfig, Run
from ddpo.errors import DeliveryError
from ddpo.runfile import parse
from deploy import cluster
from deploy.jobs.mailbox import scale
from deploy.prepare import prepare
from rewards.worker import RewardWorker

pytestmark = pytest.mark.numbers
STEPS = "steps=4"


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

    run, learned = make_run("steps=8", "lag=2", "actors.count=2", "name=deaf"), []
    with cluster.pools(prepare(run)) as pools:
        worker: Any = next(iter(pools[0].pool.members.values())).worker
        ray.get(worker.actor.__ray_call__.remote(deafen()), timeout=60)
        with pytest.raises(DeliveryError, match=r"images \d+\.\.\d+ were drawn by .* as version \d; .* did not load"):
            learn(run, pools, lambda scored, report: learned.append(report.version))
    assert learned == list(range(1, len(learned) + 1)) and 3 <= len(learned) < 8


@pytest.mark.ray
@pytest.mark.parametrize(("lag", "samplers"), [(0, 1), (0, 3), (2, 1), (2, 3)])
def test_on_ray_and_in_one_process_alike(make_run, ray_cluster, expected, lag, samplers):
    run = make_run(STEPS, f"lag={lag}", f"actors.count={samplers}", f"name=alike-{lag}-{samplers}")
    on_ray = on_cluster(run)
    expected.setdefault(lag, in_process(run))
    assert on_ray == expected[lag]


@pytest.fixture
def seen(make_run: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """seen(workers, ...): a run whose reward describes and compares; `workers` is TOML of its pools."""
    llava, bert = seeing.llava(tmp_path / "llava"), seeing.bert(tmp_path / "bert")
    facts = f"kind='alignment', model='{llava}', compare='{bert}', layer=1, max_tokens=4"
    return lambda workers, *more: make_run("lag=1", f"rewards={{seen={{{facts}, {workers}}}}}", *more)


@pytest.mark.ray
@pytest.mark.parametrize("algorithm", ["ddpo-is", "rwr"])
def test_a_reward_that_is_a_model_gives_the_same_numbers_on_ray(seen, ray_cluster, algorithm):
    run = seen("workers=2", f"learner.algorithm={algorithm}", f"name=seen-{algorithm}")
    assert on_cluster(run) == in_process(run)


@pytest.mark.ray
def test_in_stages_it_gives_the_same_numbers_scaled_and_killed(seen, ray_cluster):
    run, states, pids = seen("stages={describe={}, compare={}}", STEPS, "name=stages"), [], []

    def disturb(scored: Any, report: Any) -> None:
        assert not scored.masked
        if report.version == 1:
            states.extend(scale("stages", ["describe=2"]))
        if report.version == 2:
            pids.append(_pid("stages/reward:describe-0"))
            os.kill(pids[0], signal.SIGKILL)

    on_ray = on_cluster(run, disturb)
    assert {state.name: state.low for state in states} == {"samplers": 1, "describe": 2, "compare": 1}
    assert not psutil.pid_exists(pids[0])
    assert on_ray == in_process(run) == in_process(seen("workers=1", STEPS))


@pytest.mark.ray
def test_a_reward_that_a_server_computes_gives_the_same_numbers_on_ray(make_run, ray_cluster, expected, monkeypatch):
    monkeypatch.setenv("DDPO_REWARD_TOKEN", "x" * 16)
    with strangers.serving(RewardWorker("jpeg", RewardConfig(), ""), token="x" * 16) as (url, _):
        far = f"{{kind='http', url='{url}', workers=2, cpus=0.1, batch=3}}"
        run = make_run(STEPS, f"rewards={{jpeg={far}}}", "name=far")
        on_ray = on_cluster(run)
    expected.setdefault(0, in_process(make_run(STEPS)))
    assert on_ray == expected[0]


@pytest.mark.ray
@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("victim", ["sampler-0", "reward:jpeg-0", "learner-0"])
def test_a_killed_process_changes_nothing(make_run, ray_cluster, expected, lag, victim):
    run = make_run(STEPS, f"lag={lag}", f"name=killed-{lag}-{victim.replace(':', '-')}")
    pids: list[int] = []

    def kill(scored: Any, report: Any) -> None:
        if report.version == 1:
            pids.append(_pid(f"{run.name}/{victim}"))
        if report.version == 2:
            os.kill(pids[0], signal.SIGKILL)

    on_ray = on_cluster(run, kill)
    expected.setdefault(lag, in_process(run))
    assert not psutil.pid_exists(pids[0])
    assert on_ray == expected[lag]


def _pid(name: str) -> int:
    import ray

    return ray.get(ray.get_actor(name).__ray_call__.remote(lambda actor: os.getpid()), timeout=60)
