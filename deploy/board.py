"""What Ray's dashboard, Prometheus and Grafana show of a run on a cluster.

Consumes the pools, every second, and every step's metrics; produces Ray metrics (deploy.metrics), the job's status
message (deploy.jobs.job) and, where Ray provisions a Grafana, our dashboard beside its own; waits for nothing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpo.config import Run, chunks
from ddpo.pool import Pool, State
from deploy import advice
from deploy.jobs import job
from deploy.metrics import Metrics

EVERY = 1.0  # seconds
DASHBOARD = Path(__file__).parent / "grafana" / "ddpo.json"


class Board:
    """Told of steps by the main loop, it looks after the pools by itself."""

    def __init__(self, run: Run) -> None:
        self.run, self.metrics, self.job = run, Metrics(run.name), job.submission()
        self.rows: deque[Mapping[str, Any]] = deque(maxlen=advice.STEPS)
        self.news, self.said = "", ""
        with suppress(AttributeError):  # a Ray client (ray://) has no session on this machine
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

    def step(self, row: Mapping[str, Any], text: str, weights: int) -> None:
        """A step was learned; `text` says how it went, `weights` is what was published, in bytes.

        The Jobs page shows the first thirty letters of the message: how far the run is, and what limits it.
        """
        self.metrics.learned(row, weights)
        self.rows.append(row)
        together = advice.share_gpu(self.run.actors.gpus, self.run.learner.gpus)
        limit = advice.of(list(self.rows), self.run.lag, chunks(self.run), together)
        busy = row["seconds"]["learn"] / max(row["seconds"]["total"], 1e-9)
        stands = [str(limit or ""), f"learner busy {min(busy, 1.0):.0%}", f"lag {row['lag']}", text]
        self.news = "; ".join([f"step {row['step']}/{self.run.steps}", *filter(None, stands)])

    def says(self, states: list[State]) -> str:
        """How far the run is, in a sentence."""
        return self.news or _beginning(states)

    async def _say(self, message: str) -> None:
        """Make it the job's status message where it is new."""
        if self.job and message != self.said:
            self.said = message
            with suppress(Exception):  # of Ray's internals: no reason to end a run, and the next step tells again
                await job.say(self.job, message)


def _beginning(states: list[State]) -> str:
    """Before the first step has been learned."""
    missing = [f"{state.workers} of {state.low} {state.name}" for state in states if state.workers < state.low]
    return f"starting: {', '.join(missing)} are up" if missing else "the first batch is under way"


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
