"""The rewards of a run on Ray: pools of restartable workers that score as images arrive.

Consumes `Rollouts` of references, produces a batch whose `wait` gives `Scored`. Ray hands a chunk to its worker as soon
as its images exist. Waits, with a deadline that starts anew whenever a chunk comes in, for samplers and rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ddpo.config import RewardConfig, Run
from ddpo.errors import DdpoError, DeadlineError, WorkerError, original
from ddpo.source import fingerprint
from ddpo.types import Rollouts, Scored, Scores
from rewards.batch import combine
from rewards.worker import RewardWorker

GRACE = 30.0  # a worker enforces its own timeout; the driver steps in where that did not help (endless C code)


class RewardActor(RewardWorker):
    """A RewardWorker that says which code it runs."""

    def fingerprint(self) -> str:
        """Of the sources on its node."""
        return fingerprint()


@dataclass(frozen=True)
class InFlight:
    """A batch whose samples and scores are on their way."""

    rollouts: Rollouts
    scores: Mapping[str, list[Any]]
    config: Mapping[str, RewardConfig]
    patience: float

    def wait(self) -> Scored:
        """All scores of the batch; raises DeadlineError where nothing moves for `patience` seconds."""
        self._await([chunk.receipt for chunk in self.rollouts.chunks], "sampled")
        self._await([reference for parts in self.scores.values() for reference in parts], "scored")
        receipts = fetch([chunk.receipt for chunk in self.rollouts.chunks], self.patience)
        scores: dict[str, list[Scores]] = {
            name: fetch(references, self.patience) for name, references in self.scores.items()
        }
        return combine(self.rollouts, receipts, scores, self.config)

    def _await(self, waiting: list[Any], what: str) -> None:
        total = len(waiting)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=self.patience)
            if not done:
                raise DeadlineError(
                    f"step {self.rollouts.prompts.step + 1}: {len(waiting)} of {total} chunks are not {what} and none "
                    f"came within {self.patience:g} s. Look at the worker's log (ray logs, or the dashboard's Actors "
                    "page); for slow work raise actors.timeout or rewards.NAME.timeout."
                )


def fetch(references: list[Any], seconds: float) -> list[Any]:
    """ray.get with a deadline; our own errors come back as themselves, a dead process as WorkerError."""
    try:
        return ray.get(references, timeout=seconds)
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, DdpoError) else WorkerError(str(error))) from None
    except GetTimeoutError:
        raise DeadlineError(f"{len(references)} results did not all come within {seconds:g} s.") from None
    except RayActorError as error:
        raise original(str(error)) or WorkerError(f"a worker died and could not be replaced: {error}") from None


class RayRewards:
    """`workers` workers for every reward; chunk i goes to worker i modulo workers."""

    def __init__(self, run: Run, source: dict[str, str], environment: dict[str, Any]) -> None:
        self.run, self.config = run.name, run.rewards
        self.patience = run.actors.timeout + max(reward.timeout for reward in run.rewards.values()) + GRACE
        self.workers = {
            name: [self._start(name, reward, source[name], environment, index) for index in range(reward.workers)]
            for name, reward in run.rewards.items()
        }
        self.started = [
            worker.fingerprint.options(max_task_retries=0).remote() for pool in self.workers.values() for worker in pool
        ]

    def _start(
        self, name: str, reward: RewardConfig, source: str, environment: dict[str, Any], index: int
    ) -> Any:
        options = {
            "name": f"{self.run}/reward:{name}-{index}", "num_cpus": reward.cpus, "num_gpus": reward.gpus,
            "max_restarts": -1, "max_task_retries": 3, "runtime_env": environment,
        }
        return ray.remote(RewardActor).options(**options).remote(name, reward, source)

    def score(self, rollouts: Rollouts) -> InFlight:
        """Submit every chunk to every reward and return at once."""
        scores = {
            name: [
                pool[index % len(pool)].score.options(name=f"score:{name}").remote(chunk.images)
                for index, chunk in enumerate(rollouts.chunks)
            ]
            for name, pool in self.workers.items()
        }
        return InFlight(rollouts, scores, self.config, self.patience)
