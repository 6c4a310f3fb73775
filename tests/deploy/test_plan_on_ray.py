"""`ddpo plan --address`: the nodes and labels of a cluster with a token, asked from outside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TOKEN = "fedcba9876543210" * 4
PATIENCE = 120.0


def free_port() -> str:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return str(door.getsockname()[1])


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of one node's dashboard: three CPUs, two GPUs that are numbers, role=sampler."""
    parts, port = tempfile.mkdtemp(prefix="ddpo-"), free_port()
    words = [
        "start", "--head", "--block", f"--temp-dir={parts}", f"--port={free_port()}", "--num-cpus=3", "--num-gpus=2",
        "--labels=role=sampler,ray.io/accelerator-type=A100", "--object-store-memory=100000000",
        "--disable-usage-stats",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with (Path(parts) / "head.txt").open("wb") as log:
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(int(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(parts, ignore_errors=True)


def _wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("no dashboard")


def planned(run_file: Path, address: str, token: str) -> subprocess.CompletedProcess[str]:
    words = ["plan", str(run_file), "actors.gpus=0.5", "actors.count=3", "--address", address, "--json"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return subprocess.run([sys.executable, "-m", "deploy", *words], env=environment, capture_output=True, text=True,
                          timeout=PATIENCE, check=False)


@pytest.mark.ray
def test_a_clusters_nodes_are_counted_with_their_labels(dashboard, run_file):
    done = planned(run_file, dashboard, TOKEN)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert found["seats"]["rooms"] == {"samplers": 3, "jpeg": 0, "learner": 0}
    assert found["lacks"] == ["1 of 1 jpeg (1 CPU each): no node has role=reward-cpu",
                              "1 of 1 learner (1 CPU each): no node has role=learner"]
    refused = planned(run_file, dashboard, "0" * 64)
    assert refused.returncode == 2 and "RAY_AUTH_TOKEN" in refused.stderr and "Traceback" not in refused.stderr
