"""More trajectories in flight than the object store holds: Ray moves them to disk and back, and nothing changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
from terminal import result, write_run

from deploy import cluster

STORE = 80_000_000  # bytes; Ray takes no less than 75 MiB
CHANNELS, STEPS, CHUNK = 512, 10, 4
TRAJECTORY = CHUNK * (STEPS + 1) * CHANNELS * 16 * 16 * 4  # bytes of a chunk's


@pytest.fixture
def small_store() -> Iterator[Any]:
    """A cluster of one node with the smallest object store, named by RAY_ADDRESS; yields what asks for its figures."""
    os.environ.update(cluster._private())
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 4, "object_store_memory": STORE, "include_dashboard": False}
    fake = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = fake.address
    try:
        yield lambda: get_memory_info_reply(get_state_from_address(fake.address)).store_stats
    finally:
        del os.environ["RAY_ADDRESS"]
        fake.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # ray.cluster_utils leaves its processes' pipes open
def test_an_object_store_that_spills_changes_nothing(ddpo, small_store, tmp_path):
    table = tiny.run(tiny.make_wide(tmp_path / "wide", CHANNELS)) | {"steps": 4, "lag": 2}
    table["policy"]["steps"], table["images"]["count"] = STEPS, 1
    table["learner"]["inner_epochs"] = 2  # so that learning is the slower part, and batches wait for it
    file = write_run(tmp_path / "small.toml", table)
    assert 3 * 2 * TRAJECTORY > 1.5 * STORE  # three batches of two chunks are in flight
    assert ddpo("train", file).code == 0
    figures = small_store()
    assert figures.spilled_bytes_total > TRAJECTORY and figures.restored_bytes_total > TRAJECTORY
    assert figures.object_store_bytes_primary_copy < TRAJECTORY  # nothing of the run is kept once it has ended
    answer = ddpo("audit", "runs/small")
    assert answer.code == 0 and "32 drawn = 32 trained" in answer.out
    assert ddpo("train", file, "--in-process", "name=here").code == 0
    runs = tmp_path / "runs"
    assert result(runs / "small")["lora_digest"] == result(runs / "here")["lora_digest"]
