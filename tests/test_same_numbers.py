"""Property 2: a run is a function of its config and seed, on Ray and in one process, whatever dies on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import seeing
import tiny
from learning import in_process, on_cluster

from ddpo.runfile import parse
from deploy import cluster

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


@pytest.mark.ray
@pytest.mark.parametrize(("lag", "samplers"), [(0, 1), (0, 3), (2, 1), (2, 3)])
def test_on_ray_and_in_one_process_alike(make_run, ray_cluster, expected, lag, samplers):
    run = make_run(STEPS, f"lag={lag}", f"actors.count={samplers}", f"name=alike-{lag}-{samplers}")
    on_ray = on_cluster(run)
    expected.setdefault(lag, in_process(run))
    assert on_ray == expected[lag]


@pytest.mark.ray
@pytest.mark.parametrize("algorithm", ["ddpo-is", "rwr"])
def test_a_reward_that_is_a_model_gives_the_same_numbers_on_ray(make_run, ray_cluster, tmp_path, algorithm):
    llava, bert = seeing.llava(tmp_path / "llava"), seeing.bert(tmp_path / "bert")
    seen = f"{{kind='alignment', model='{llava}', compare='{bert}', layer=1, max_tokens=4, workers=2}}"
    run = make_run("lag=1", f"rewards={{seen={seen}}}", f"learner.algorithm={algorithm}", f"name=seen-{algorithm}")
    assert on_cluster(run) == in_process(run)


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

    on_ray = on_cluster(run, kill)
    expected.setdefault(lag, in_process(run))
    assert not psutil.pid_exists(pids[0])
    assert on_ray == expected[lag]


def _pid(name: str) -> int:
    import ray

    return ray.get(ray.get_actor(name).__ray_call__.remote(lambda actor: os.getpid()), timeout=60)
