"""GPUs on Ray, without one: clusters that claim to have two, and what their workers see of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import seeing
import torch
from learning import on_cluster

from ddpo.config import ActorsConfig
from ddpo.errors import DeviceError
from deploy import cluster
from deploy.machines import Machines
from deploy.prepare import prepare

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def claimed() -> Iterator[None]:
    """A cluster that claims two GPUs; none is there, and nobody looks before a worker uses one."""
    before = dict(os.environ)
    os.environ.update(cluster._private())
    for name in cluster.GPU_SETTINGS:  # of a run in this process, which workers would inherit
        os.environ.pop(name, None)
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("override", ["0", "1"])  # Ray's own setting, for clusters that somebody else has started
def test_a_worker_sees_the_gpus_that_it_reserves_and_no_others(claimed, override):
    import ray

    from deploy.staff import Staff

    class Eye:  # in here, since a worker cannot import this file
        def seen(self) -> dict[str, str]:
            return dict(os.environ)

    def environment(wants: Any) -> dict[str, Any]:
        settings = cluster.environment(wants)["env_vars"]
        return {"env_vars": settings | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": override}}

    staff, seen = Staff("seeing", environment, lambda crew, found: None), {}
    for gpus in (0.0, 0.5, 2.0):
        wants = replace(ActorsConfig(), gpus=gpus, cpus=0)
        worker = staff.hire(f"eye-{override}-{gpus}", Eye, (), wants, 60)(0)
        seen[gpus] = ray.get(worker.actor.seen.remote(), timeout=60)
        worker.kill()
    visible = {gpus: environment["CUDA_VISIBLE_DEVICES"] for gpus, environment in seen.items()}
    assert visible[0.0] == "" and visible[0.5] in ("0", "1") and sorted(visible[2.0].split(",")) == ["0", "1"]
    assert cluster.GPU_SETTINGS.items() <= seen[0.5].items() and "CUBLAS_WORKSPACE_CONFIG" not in seen[0.0]


def test_a_run_that_leaves_all_gpus_unused_says_so(make_run):
    assert cluster.unused(make_run(), 2).startswith("the cluster has 2 GPUs and the run reserves none, so all of it")
    assert "1 GPU and" in cluster.unused(make_run(), 1)
    assert not cluster.unused(make_run(), 0)
    assert not cluster.unused(make_run("policy.device=cpu"), 2)
    assert not cluster.unused(make_run("rewards.jpeg.gpus=0.5"), 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("word", ["actors.gpus=0.1", "learner.gpus=0.1", "rewards.look.gpus=0.1"])
def test_a_worker_whose_gpu_torch_cannot_use_ends_the_run_at_its_start(make_run, claimed, tmp_path, word):
    seeing.clip(tmp_path / "clip")
    look = f"rewards.look={{kind='clipscore', model='{tmp_path / 'clip'}'}}"
    run, start = make_run(look, word, "actors.count=1", f"name={word.split('.gpus')[0]}"), time.monotonic()
    with pytest.raises(DeviceError, match=r"this worker has reserved 0.1 GPU, but torch .* NVIDIA driver: "):
        on_cluster(run)
    assert time.monotonic() - start < 60


def test_every_worker_says_what_it_computes_on(make_run, claimed):
    run = make_run("name=told", "actors.count=1")
    machines = Machines(run)
    with cluster.pools(prepare(run), machines=machines):
        pass
    cpu = {"device": "cpu", "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    assert machines.table() == {"jpeg": [{}], "learner": [cpu], "samplers": [cpu]}
