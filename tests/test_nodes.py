"""A whole node dies, with the samplers on it and the chunks that they have drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from learning import in_process, on_cluster

from deploy import cluster

STORE = 100_000_000  # bytes of a node's object store


@pytest.fixture
def nodes(make_run) -> Iterator[Any]:
    """Ray's fake cluster: a head that has room for next to nothing, and two nodes; named by RAY_ADDRESS."""
    os.environ.update(cluster._private())
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    fake = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        fake.add_node(num_cpus=4, object_store_memory=STORE)
    fake.wait_for_nodes(timeout=60)
    os.environ["RAY_ADDRESS"] = fake.address
    try:
        with cluster.connected(make_run()):
            yield fake
    finally:
        del os.environ["RAY_ADDRESS"]
        fake.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # ray.cluster_utils leaves its processes' pipes open
@pytest.mark.parametrize("lag", [0, 2])
def test_a_node_that_dies_changes_nothing_and_is_known_to_be_dead(make_run, nodes, lag):
    import ray

    from deploy import staff

    run = make_run("steps=6", f"lag={lag}", "actors.count=2", f"name=node-{lag}")

    def place(actor: Any) -> str:  # in here, since a worker cannot import this file
        import ray

        return ray.get_runtime_context().get_node_id()

    hosts = []

    def kill(scored: Any, report: Any) -> None:
        if report.version == 3:
            host = ray.get(ray.get_actor(f"{run.name}/sampler-0").__ray_call__.remote(place), timeout=60)
            hosts.append(host)
            nodes.remove_node(next(n for n in nodes.worker_nodes if n.node_id == host), allow_graceful=False)

    assert on_cluster(run, kill) == in_process(run)
    known = [node["NodeID"] for node in ray.nodes()]
    assert [node for node in known if staff._has_died(node)] == hosts and len(known) == 3
