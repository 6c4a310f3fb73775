"""Where runs are disturbed: a fake cluster of several nodes, and `ddpo train` as a process of its own.

Consumes faults, produces strikes and the runs' folders; waits, with a deadline, for the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from schedule import ALONE, Fault, Schedule

from ddpo.errors import DdpoError
from deploy.cluster import visiting
from deploy.jobs.mailbox import scale

ROOT = Path(__file__).resolve().parents[2]
STORE = 100_000_000  # bytes of a node's object store
NODES, CPUS = 3, 4  # beside the head; two of them have room for everything
LONGEST = 420.0  # seconds for a run with all its faults
POLL = 0.05
NOTHING = "nothing to strike"


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

    def __init__(self, schedule: Schedule, file: Path, folder: Path, fake: Any) -> None:
        self.schedule, self.file, self.folder, self.fake = schedule, file, folder, fake
        self.path = folder / "runs" / f"chaos-{schedule.seed}"
        self.process: subprocess.Popen[bytes]
        self.struck: list[dict[str, Any]] = []
        self.ending: dict[str, Any] | None = None  # the strike that ends the driver, until it is started again

    def go(self) -> None:
        """Start, strike at every moment, and wait for the end; raises RuntimeError where the run ends otherwise."""
        self.end = time.monotonic() + LONGEST
        self._start()
        try:
            for fault in self.schedule.faults:
                if not self._moment(fault):
                    return
                self._strike(fault)
            while self._alive():
                time.sleep(POLL)
        finally:
            self.process.kill()
            self.process.wait(30)
            self._heal()

    def _start(self) -> None:
        again = (self.path / "config.toml").exists()
        words = [str(self.file), *_words(self.schedule), *(["--in-process"] if self.schedule.alone else []),
                 *(["--resume"] if again else [])]
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

    def _moment(self, fault: Fault) -> bool:
        """Wait for the fault's moment; False where the run has ended before it."""
        while fault.after >= 0 and self.learned() < fault.after:
            if not self._alive():
                return False
            time.sleep(POLL)
        moment = (self.began if fault.after < 0 else time.monotonic()) + fault.delay
        while time.monotonic() < moment:
            if not self._alive():
                return False
            time.sleep(POLL)
        return self._alive()

    def _strike(self, fault: Fault) -> None:
        done = getattr(self, f"_{fault.kind}")(fault)
        self.struck.append({"kind": fault.kind, "victim": done, "at": time.monotonic(), "learned": self.learned()})
        if fault.kind in ALONE:
            self.ending = self.struck[-1]

    def _note_progress(self) -> None:
        """Enter when the run learned its first step after each strike."""
        now, learned = time.monotonic(), self.learned()
        for entry in self.struck:
            if "seconds" not in entry and learned > entry["learned"]:
                entry["seconds"] = round(now - entry["at"], 2)

    def _sampler(self, fault: Fault) -> str:
        return self._kill("sampler-", fault)

    def _reward(self, fault: Fault) -> str:
        return self._kill("reward:", fault)

    def _learner(self, fault: Fault) -> str:
        return self._kill("learner-", fault)

    def _kill(self, role: str, fault: Fault) -> str:
        """SIGKILL one process of a role."""
        from ray._private.state import actors

        with visiting(""):  # for as short as can be: whoever is connected is told at length of every node that dies
            known = actors().values()
        prefix = f"chaos-{self.schedule.seed}/{role}"
        alive = sorted(
            (entry["Name"], entry["Pid"]) for entry in known
            if entry["Name"].startswith(prefix) and entry["State"] == "ALIVE" and entry["Pid"]
        )
        if not alive:
            return NOTHING
        name, pid = alive[int(fault.pick * len(alive))]
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just died with its node, and Ray does not know yet
            return NOTHING
        return name.partition("/")[2]

    def _node(self, fault: Fault) -> str:
        """Take a node away as a power cut would; another comes in its place."""
        nodes = sorted(self.fake.worker_nodes, key=lambda node: node.node_id)
        self.fake.remove_node(nodes[int(fault.pick * len(nodes))], allow_graceful=False)
        self.fake.add_node(num_cpus=CPUS, object_store_memory=STORE)
        return "node"

    def _scale(self, fault: Fault) -> str:
        wish = f"{('samplers', 'mine')[fault.pick < 0.5]}={1 + int(fault.pick * 6) % 3}"
        try:
            with visiting(""):
                scale(f"chaos-{self.schedule.seed}", [wish])
        except (DdpoError, RayError):  # the run starts, or has just been killed
            return NOTHING
        return wish

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


def _words(schedule: Schedule) -> list[str]:
    return [f"name=chaos-{schedule.seed}", f"lag={schedule.lag}", f"learner.ranks={schedule.ranks}"]
