"""A cluster of several hosts, each with a network of its own: hosts are cut off while they live, and come back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import psutil
import pytest
from hosts import Host
from learning import in_process
from terminal import metrics

from ddpo.weights import read
from deploy.audit import audit
from deploy.recipes import find
from learner import checkpoint

TOKEN = "0123456789abcdef" * 4
PATIENCE = 180.0
CPUS = 5  # of a worker host: room for the whole run, since the other one is going to be cut off
HEALTH = {  # a host is dead after 3 x (1 + 3) s instead of Ray's 5 x (3 + 10) s
    "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
ASK = (
    "import os, sys, urllib.request as web\n"
    "token = {'Authorization': 'Bearer ' + os.environ['RAY_AUTH_TOKEN']}\n"
    "print(web.urlopen(web.Request(sys.argv[1], headers=token), timeout=30).read().decode())"
)
REWARD = (
    "import time\n\ndef reward(images, prompts, metadata):\n    time.sleep({seconds})\n"
    "    return [-float(len(set(image.tobytes()))) for image in images], {{}}\n"
)


class Site:
    """A head that does no work, two hosts that do, and a client that is no part of the cluster."""

    def __init__(self, head: Host, workers: list[Host], client: Host, folder: Path) -> None:
        self.head, self.client, self.folder, self.url = head, client, folder, f"http://{head.address}:8265"
        self.workers, self.parts, self.nodes = {host.address: host for host in workers}, [], {}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's `python` is found there
        self.environment = {
            "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "DDPO_RUNS": str(folder),
        }
        self._node(head, "--head", "--num-cpus", "0", "--dashboard-host", head.address, **HEALTH)

    def _node(self, host: Host, *words: str, **settings: str) -> None:
        self.parts.append(tempfile.mkdtemp(prefix="ray"))  # short: a socket's path has 107 letters at most
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", host.address,
                   "--temp-dir", self.parts[-1], "--object-store-memory", "100000000", "--disable-usage-stats", *words]
        log = self.folder / f"{host.name}.txt"
        self.nodes[host.address] = host.start(command, log, **self.environment, **settings)

    def join(self, host: Host) -> None:
        """What a cluster manager does with a host whose `ray start` has ended."""
        self._node(host, "--address", f"{self.head.address}:6379", "--num-cpus", str(CPUS))

    def alive(self) -> set[str]:
        """Addresses of the nodes that the head takes for alive."""
        return {node["node_ip"] for node in self._list("nodes") if node["state"] == "ALIVE"}

    def actors(self) -> dict[str, tuple[str, int]]:
        """Address and process of the run's workers, by name."""
        at = {node["node_id"]: node["node_ip"] for node in self._list("nodes")}
        return {actor["name"]: (at[actor["node_id"]], actor["pid"]) for actor in self._list("actors")
                if actor["state"] == "ALIVE" and actor["class_name"] in ("SamplerActor", "RewardActor", "LearnerActor")}

    def _list(self, kind: str) -> list[dict[str, Any]]:
        asked = f"{self.url}/api/v0/{kind}?limit=1000&detail=1"
        answer = self.head.run([sys.executable, "-c", ASK, asked], 60, **self.environment)
        return json.loads(answer.stdout)["data"]["result"]["result"] if answer.returncode == 0 else []

    def far(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of ours, on the client."""
        return self.client.run(self.ours(*words), PATIENCE, **self.environment)

    def ours(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "deploy", *words, "--address", self.url]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if reason := hosts.refusal():
        pytest.skip(f"hosts with addresses of their own need network namespaces: {reason}")
    with hosts.hosts(4) as (head, *workers, client):
        made = Site(head, workers, client, tmp_path)
        try:
            wait_for(made.alive, "head", PATIENCE)
            for host in workers:
                made.join(host)
            yield made
        finally:
            for host in (head, *workers, client):
                host.kill()
            for node in made.nodes.values():
                node.wait(30)
            for parts in made.parts:
                shutil.rmtree(parts, ignore_errors=True)


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} after {seconds:g} s"
        time.sleep(0.5)


def learned(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(metrics(folder)) if file.exists() else 0


def words_of(model: Path, reward: Path, seconds: float) -> list[str]:
    reward.write_text(REWARD.format(seconds=seconds))
    return [
        f"policy.base={model}", "policy.steps=5", "actors.batch=4", "actors.count=1", "name=wide", "lag=1",
        "learner.images_per_step=8", "learner.minibatch=4", "learner.micro_batch=4", "learner.window=[0,5]",
        "advantage.min_count=4", 'prompts.items=["a cat"]', "images.every=100000",
        f"rewards={{mine={{kind='function', path='{reward}', workers=1}}}}",
    ]


def newest(folder: Path) -> str:
    """Digest of the weights in the newest checkpoint."""
    files = (checkpoint.steps(folder / "checkpoints")[-1] / "policies").glob("*.msgpack")
    return max((read(file.read_bytes()) for file in files), key=lambda policy: policy.version).digest


@pytest.mark.ray
def test_hosts_that_are_cut_off_and_come_back_change_nothing(site, model, tmp_path):
    run, said = tmp_path / "wide", tmp_path / "followed.txt"
    submitted = site.far("submit", "demo", *words_of(model, tmp_path / "mine.py", 1.0), "steps=100000")
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: learned(run) or "has ended" in site.far("status", "wide").stdout, "first step")
    assert learned(run), site.far("logs", "wide").stdout
    scaled = site.far("scale", "wide", "samplers=2", "mine=2")
    assert scaled.returncode == 0 and scaled.stdout.count("2..2") == 2, scaled.stderr
    wait_for(lambda: len(site.actors()) == 5, "second sampler and reward worker")
    before = site.actors()
    assert {address for address, _ in before.values()} == set(site.workers)
    follower = site.client.start(site.ours("logs", "wide", "--follow"), said, **site.environment)
    wait_for(lambda: said.exists() and "step 1/" in said.read_text(), "first line at the client")

    home = before["wide/learner-0"][0]
    first, second = sorted(site.workers.values(), key=lambda host: host.address == home)
    site.client.cut()
    _cut_off(site, first, run)
    assert "Job wide-" in said.read_text() and "needs none and goes on" in said.read_text()
    site.client.heal()
    wait_for(lambda: "answers again" in said.read_text(), "connection of the client")
    site.join(first)
    wait_for(lambda: first.address in site.alive(), "first host's return")
    _cut_off(site, second, run)
    assert {address for address, _ in site.actors().values()} == {first.address}

    assert site.far("stop", "wide").returncode == 0
    assert follower.wait(PATIENCE) == 0
    assert re.findall(r"^step (\d+)/", said.read_text(), re.M) == [str(n + 1) for n in range(learned(run))]
    assert audit(run).problems == []
    alone = find("demo", [*words_of(model, tmp_path / "quick.py", 0.0), f"steps={learned(run)}"])
    assert newest(run) == in_process(alone)


def _cut_off(site: Site, host: Host, run: Path) -> None:
    """Cut a host off until the run has gone on without it, then connect it again: Ray's node there ends by itself."""
    there = [pid for address, pid in site.actors().values() if address == host.address]
    host.cut()
    assert "wide: step" in site.head.run(site.ours("status", "wide"), PATIENCE, **site.environment).stdout
    wait_for(lambda: host.address not in site.alive(), "end of the host, as the head sees it")
    done = learned(run)
    wait_for(lambda: learned(run) > done + 2, "step without it")
    assert there and all(psutil.pid_exists(pid) for pid in there), "both sides of the cut live on"
    host.heal()
    assert site.nodes[host.address].wait(60) == 1
