"""A run on a cluster that grows: its workers wait, nodes of their roles come; it ends, and the nodes go again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from autoscaled import autoscaled
from learning import on_cluster

from deploy import cluster
from deploy.placing import ROLE

LEAVE = 120.0  # seconds for idle nodes to be gone, on a busy machine


@pytest.fixture
def growing(make_run: Callable[..., Any]) -> Iterator[str]:
    """The cluster of ray_cluster.yaml on the fake autoscaler, connected; gives its address."""
    os.environ.update(cluster._private())  # before ray is imported, which reads the token once
    with autoscaled() as address, cluster.connected(make_run(f"ray.address={address}")):
        yield address


def roles() -> list[str]:
    """Of the nodes that live."""
    import ray

    return sorted(node["Labels"].get(ROLE, "none") for node in ray.nodes() if node["Alive"])


def wants(address: str) -> list[Any]:
    """What the autoscaler still has to find room for."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    demands = get_cluster_status(address).resource_demands
    return [*demands.ray_task_actor_demand, *demands.placement_group_demand, *demands.cluster_constraint_demand]


@pytest.mark.ray
def test_nodes_of_the_roles_come_for_a_run_and_go_after_it(make_run, growing):
    run = make_run("actors.count=2", "actors.gpus=1", "learner.gpus=1", "learner.ranks=2", "learner.micro_batch=2",
                   "policy.device=cpu")  # GPUs are reserved that are not there
    seen = []
    assert roles() == ["head"]
    assert on_cluster(run, lambda scored, report: seen.append(roles()))
    assert seen[-1] == ["head", "learner", "reward-cpu", "sampler"]  # and no reward-gpu: no reward asks for one
    end = time.monotonic() + LEAVE
    while roles() != ["head"]:
        assert time.monotonic() < end, f"still there: {roles()}"
        time.sleep(0.5)
    assert not wants(growing)
