"""Ray's fake autoscaler with the node types of ray_cluster.yaml: nodes are processes of this machine, GPUs are numbers.

Not ray.cluster_utils.AutoscalingCluster, which stops every Ray on the machine before it starts its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
IDLE = 5.0  # seconds after which an idle node goes
STORE = 80_000_000  # bytes of a node's object store
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"  # Ray's wheel lacks its defaults
EMPTY = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
         "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # as ray.autoscaler._private.fake_multi_node has them


@contextmanager
def autoscaled() -> Iterator[str]:
    """A head without CPUs, whose autoscaler starts and ends the nodes; gives its address."""
    with tempfile.TemporaryDirectory(prefix="ddpo-", ignore_cleanup_errors=True) as folder:
        address = f"127.0.0.1:{_free_port()}"
        try:
            _start(Path(folder), address)
            yield address
        finally:
            _end(folder)


def _start(folder: Path, address: str) -> None:
    config = folder / "cluster.yaml"
    config.write_text(yaml.safe_dump(_faked(address)))
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1",
         f"--port={address.partition(':')[2]}", f"--autoscaling-config={config}", f"--temp-dir={folder}",
         f"--object-store-memory={STORE}", "--num-cpus=0", "--num-gpus=0", "--labels=role=head",
         "--include-dashboard=false"],
        env=environment, check=True, capture_output=True, timeout=120,
    )


def _faked(address: str) -> dict[str, Any]:
    """ray_cluster.yaml with the provider replaced, and less patience with idle nodes."""
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    types = {name: part | {"node_config": {}} for name, part in config["available_node_types"].items()}
    for part in types.values():
        part["resources"] |= {"object_store_memory": STORE}
        part.pop("idle_timeout_s", None)
    types[HEAD_TYPE] = types.pop(config["head_node_type"])
    provider = {"type": "external", "module": FAKE, "gcs_address": address, "head_node_id": HEAD_ID,
                "launch_multiple": True, "disable_node_updaters": True}
    return {key: [] for key in EMPTY} | {
        "cluster_name": "fake", "provider": provider, "available_node_types": types, "head_node_type": HEAD_TYPE,
        "max_workers": config["max_workers"], "idle_timeout_minutes": IDLE / 60, "file_mounts": {},
    }


def _end(folder: str) -> None:
    """Everything that was started for this cluster: its folder is in their command lines, and in no others'."""
    running = psutil.process_iter(["cmdline"])
    ours = [process for process in running if folder in " ".join(process.info["cmdline"] or [])]
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
