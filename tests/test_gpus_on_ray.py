"""GPUs on Ray, without one: clusters that claim to have two, and what their workers see of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ddpo.config import ActorsConfig
from deploy import cluster

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def claimed() -> Iterator[None]:
    """A cluster that claims two GPUs; none is there, and nobody looks before a worker uses one."""
    before = dict(os.environ)
    os.environ.update(cluster._private())
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


class Eye:
    """A worker that tells what it sees."""

    def visible(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("override", ["0", "1"])  # Ray's own setting, for clusters that somebody else has started
def test_a_worker_sees_the_gpus_that_it_reserves_and_no_others(claimed, override):
    import ray

    from deploy.staff import Staff

    def environment(wants: Any) -> dict[str, Any]:
        settings = cluster.environment(wants)["env_vars"]
        return {"env_vars": settings | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": override}}

    staff, seen = Staff("seeing", environment), {}
    for gpus in (0.0, 0.5, 2.0):
        worker = staff.hire(f"eye-{gpus}", Eye, (), replace(ActorsConfig(), gpus=gpus, role="", cpus=0), 60)(0)
        seen[gpus] = ray.get(worker.actor.visible.remote(), timeout=60)
        worker.kill()
    assert seen[0.0] == "" and seen[0.5] in ("0", "1") and sorted(seen[2.0].split(",")) == ["0", "1"]


def test_a_run_that_leaves_all_gpus_unused_says_so(make_run):
    assert cluster.unused(make_run(), 2).startswith("the cluster has 2 GPUs and the run reserves none, so all of it")
    assert "1 GPU and" in cluster.unused(make_run(), 1)
    assert not cluster.unused(make_run(), 0)
    assert not cluster.unused(make_run("policy.device=cpu"), 2)
    assert not cluster.unused(make_run("rewards.jpeg.gpus=0.5"), 2)
