"""What Ray's dashboard, Prometheus and Grafana show of a run on a cluster.

Consumes the pools, every second, and every step's metrics; produces Ray metrics (deploy.metrics), the job's status
message (deploy.job) and, where Ray provisions a Grafana, our dashboard beside its own; waits for nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.pool import Pool, State
from deploy import advice, job
from deploy.metrics import Metrics

EVERY = 1.0  # seconds
DASHBOARD = Path(__file__).parent / "grafana" / "ddpo.json"


class Board:
    """Told of steps by the main loop, it looks after the pools by itself."""

    def __init__(self, run: Run) -> None:
        self.run, self.metrics, self.job = run, Metrics(run.name), job.submission()
        self.rows: deque[Mapping[str, Any]] = deque(maxlen=advice.STEPS)
        self.line, self.said = "", ""
        provision(_session())

    async def watch(self, pools: Mapping[str, Pool], learner: Any) -> None:
        """Tell how things stand for as long as the loop lives."""
        while True:
            states = [pool.state() for pool in pools.values()]
            self.metrics.pools(states)
            self.metrics.count_to("workers_lost", learner.lives - 1, "learner")
            if self.rows:
                self.metrics.newest(self.rows[-1], self.run.steps)
            await self._say(self.says(states))
            await asyncio.sleep(EVERY)

    def step(self, row: Mapping[str, Any], line: str, weights: int) -> None:
        """A step was learned; `line` says it to a person, `weights` is what was published, in bytes."""
        self.metrics.learned(row, weights)
        self.rows.append(row)
        self.line = f"{line}; {advice.of(list(self.rows), self.run.lag)}"

    def says(self, states: list[State]) -> str:
        """How far the run is, in a sentence."""
        return self.line or _beginning(states)

    async def _say(self, message: str) -> None:
        """Write the job's status message where it is new; the run does not depend on it."""
        if not self.job or message == self.said:
            return
        self.said = message
        try:
            await job.say(self.job, message)
        except Exception as error:  # of Ray's internals
            print(f"Note: the job has no status message ({type(error).__name__}: {error}).", file=sys.stderr)
            self.job = ""


def _beginning(states: list[State]) -> str:
    """Before the first step has been learned."""
    missing = [f"{state.workers} of {state.low} {state.name}" for state in states if state.workers < state.low]
    return f"starting: {', '.join(missing)} are up" if missing else "working on the first batch"


def _session() -> Path:
    """The folder of the connected cluster's session on this machine."""
    import ray

    context = ray.get_runtime_context()
    return Path(context.get_temp_dir()) / context.get_session_name()


def provision(session: Path) -> None:
    """Put our dashboard into the folder from which Ray has Grafana read its own, where this is the head's machine."""
    folder = session / "metrics" / "grafana" / "dashboards"
    with suppress(OSError):  # of a cluster that somebody else started
        if folder.is_dir():
            shutil.copyfile(DASHBOARD, folder / DASHBOARD.name)
