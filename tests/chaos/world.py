"""Where runs are disturbed: a fake cluster of several nodes, and `ddpo train` as a process of its own.

Consumes schedules, produces strikes and the runs' folders; waits, with deadlines, for victims and for the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import victim
from ray.exceptions import RayError
from schedule import ALONE, Fault, Schedule
from summary import NOTHING

from ddpo.errors import DdpoError
from deploy.cluster import visiting
from deploy.jobs.mailbox import scale

ROOT = Path(__file__).resolve().parents[2]
STORE = 100_000_000  # bytes of a node's object store
NODES, CPUS = 3, 4  # beside the head
MOST = 5  # workers that a pool is scaled to
LONGEST = 420.0  # seconds for a run with all its faults
PATIENCE = 60.0  # seconds that a strike waits for a victim
POLL = 0.05


@contextmanager
def cluster(parts: Path) -> Iterator[Any]:
    """Ray's fake cluster, its address in RAY_ADDRESS."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "temp_dir": str(parts)}
    fake = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(NODES):
            fake.add_node(num_cpus=CPUS, object_store_memory=STORE)
        fake.wait_for_nodes(timeout=60)
        os.environ["RAY_ADDRESS"] = fake.address
        yield fake
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        fake.shutdown()


class Disturbed:
    """A run that is being disturbed; restarted with --resume wherever it was made to end."""

    def __init__(self, schedule: Schedule, folder: Path, fake: Any) -> None:
        self.schedule, self.folder, self.fake = schedule, folder, fake
        self.file, self.path = victim.write(schedule, folder), victim.place(schedule, folder)
        self.process: subprocess.Popen[bytes]
        self.struck: list[dict[str, Any]] = []
        self.ending: dict[str, Any] | None = None  # the strike that ends the driver, until it is started again

    def go(self) -> None:
        """Start, strike at every moment, and wait for the end; raises RuntimeError where the run ends otherwise."""
        self.end, held = time.monotonic() + LONGEST, victim.hold(self.schedule, self.folder)
        held.touch()
        self._start()
        try:
            for fault in self.schedule.faults:
                self._strike(fault)
            held.unlink()
            while self._alive():
                time.sleep(POLL)
        finally:
            held.unlink(missing_ok=True)
            self.process.kill()
            self.process.wait(30)
            self._heal()

    def _start(self) -> None:
        again = (self.path / "config.toml").exists()
        words = [str(self.file), *(["--in-process"] if self.schedule.alone else []), *(["--resume"] if again else [])]
        with (self.folder / f"{self.schedule.seed}.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy", "train", *words], cwd=self.folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.began = time.monotonic()

    def learned(self) -> int:
        """Steps that the run has learned."""
        file = self.path / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def _drawing(self) -> bool:
        """Whether the first batch went to the samplers."""
        ledger = self.path / "ledger.jsonl"
        return ledger.exists() and ledger.stat().st_size > 0

    def _alive(self) -> bool:
        """Whether the run goes on; starts it again where a fault has ended it."""
        self._note_progress()
        code = self.process.poll()
        if code is None:
            if time.monotonic() > self.end:
                raise RuntimeError(f"not at its end after {LONGEST:g} s")
            return True
        if code == 0:
            return False
        if self.ending is None:
            raise RuntimeError(f"it ended with {code}, though its driver was let alone")
        now = time.monotonic()
        self.ending.pop("seconds", None)
        self.ending.update(learned=self.learned(), left=round(now - self.ending["at"], 2), at=now)
        self.ending = None
        self._start()
        return True

    def _strike(self, fault: Fault) -> None:
        """At its moment, or once there is a victim; none where the run has ended before."""
        done, at = self._victim(fault) if self._moment(fault) else (NOTHING, time.monotonic())
        self.struck.append({"kind": fault.kind, "victim": done, "at": at, "learned": self.learned()})
        if fault.kind in ALONE and done != NOTHING:
            self.ending = self.struck[-1]

    def _moment(self, fault: Fault) -> bool:
        """Wait for the fault's moment; False where the run has ended before it."""
        while fault.after >= 0 and not (self._drawing() and self.learned() >= fault.after):
            if not self._alive():
                return False
            time.sleep(POLL)
        moment = (self.began if fault.after < 0 else time.monotonic()) + fault.delay
        while time.monotonic() < moment:
            if not self._alive():
                return False
            time.sleep(POLL)
        return True

    def _victim(self, fault: Fault) -> tuple[str, float]:
        """Who was struck as soon as there was somebody, and when."""
        end = time.monotonic() + PATIENCE
        while self._alive() and (now := time.monotonic()) < end:
            done = getattr(self, f"_{fault.kind}")(fault)
            if done != NOTHING:
                return done, now
            time.sleep(POLL)
        return NOTHING, time.monotonic()

    def _note_progress(self) -> None:
        """Enter when the run learned its first step after each strike."""
        now, learned = time.monotonic(), self.learned()
        for entry in self.struck:
            if "seconds" not in entry and learned > entry["learned"]:
                entry["seconds"] = round(now - entry["at"], 2)

    def _sampler(self, fault: Fault) -> str:
        return self._kill_one("sampler-", fault)

    def _reward(self, fault: Fault) -> str:
        return self._kill_one("reward:", fault)

    def _learner(self, fault: Fault) -> str:
        return self._kill_one("learner-", fault)

    def _crew(self, fault: Fault) -> str:
        """SIGKILL all workers of the reward at once, those that are idle too."""
        killed = [name for name, pid, _ in self._actors("reward:") if _kill(pid)]
        return ", ".join(killed) or NOTHING

    def _kill_one(self, role: str, fault: Fault) -> str:
        """SIGKILL one process of a role."""
        alive = self._actors(role)
        if not alive:
            return NOTHING
        name, pid, _ = alive[int(fault.pick * len(alive))]
        return name if _kill(pid) else NOTHING

    def _actors(self, role: str = "") -> list[tuple[str, int, str]]:
        """Name, process and node of the run's actors that live, those of the newest driver."""
        prefix = f"{self.path.name}/{role}"
        alive = [entry for entry in _known(self.fake.address) if entry["Name"].startswith(prefix)]
        newest = max((entry["JobID"] for entry in alive), default="")
        return sorted(
            (entry["Name"].partition("/")[2], entry["Pid"], entry["Address"]["NodeID"])
            for entry in alive if entry["JobID"] == newest
        )

    def _node(self, fault: Fault) -> str:
        """Take a node on which the run has processes away, as a power cut would; another comes in its place."""
        homes = {node for _, _, node in self._actors()}
        nodes = sorted((node for node in self.fake.worker_nodes if node.node_id in homes), key=lambda one: one.node_id)
        if not nodes:
            return NOTHING
        self.fake.remove_node(nodes[int(fault.pick * len(nodes))], allow_graceful=False)
        self.fake.add_node(wait=False, num_cpus=CPUS, object_store_memory=STORE)
        return "node"

    def _scale(self, fault: Fault) -> str:
        wish = f"{('samplers', 'mine')[fault.pick < 0.5]}={1 + int(fault.pick * 2 * MOST) % MOST}"
        with suppress(DdpoError, RayError), visiting(""):  # the run starts, or has just been killed
            scale(self.path.name, [wish])
            return wish
        return NOTHING

    def _driver(self, fault: Fault) -> str:
        self.process.kill()
        self.process.wait(30)
        return "driver"

    def _preemption(self, fault: Fault) -> str:
        self.process.terminate()
        return "driver"

    def _heal(self) -> None:
        """As many nodes as at first, all of them known."""
        if self.fake is not None:
            self.fake.wait_for_nodes(timeout=90)


def _known(address: str) -> list[dict[str, Any]]:
    """Ray's table of the actors that live, read without joining the cluster: a strike has to be quick, and whoever has
    joined is told at length of every node that dies."""
    from ray._private.internal_api import get_state_from_address

    state = get_state_from_address(address)
    try:
        entries = state.actor_table(None, actor_state_name="ALIVE").values()
        return [entry for entry in entries if entry["Pid"]]
    finally:
        state.disconnect()


def _kill(pid: int) -> bool:
    """SIGKILL; False where it has just died with its node, and Ray does not know yet."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
