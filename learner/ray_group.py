"""The learner on Ray: one actor, rebuilt from its last state where it dies.

Consumes scored batches of references, produces reports and policies; waits, with a deadline, for the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.errors import DdpoError, DeadlineError, WorkerError
from ddpo.source import fingerprint
from ddpo.types import Policy, Report, Scored
from learner.learner import Learner

State = dict[str, NDArray[Any]]
REBUILDS = 3  # deaths within one step before the run gives up


class LearnerActor(Learner):
    """A Learner that fetches its trajectories itself, so that they never pass through the driver."""

    def learn(
        self, trajectories: list[Any], advantages_B: NDArray[np.float64], kept_B: NDArray[np.bool_]
    ) -> tuple[Report, Policy, State | None]:
        """Update; returns the report, the next policy and the state to rebuild from."""
        report = self.update(ray.get(trajectories, timeout=self.run.learner.timeout), advantages_B, kept_B)
        return report, self.policy(), self.small_state()

    def small_state(self) -> State | None:
        """LoRA's state, a few MB, after every step; a whole UNet's, over 10 GB for SD, only where it is asked for."""
        return self.state() if self.run.policy.train == "lora" else None

    def start(self) -> tuple[str, Policy, State | None]:
        """Fingerprint, policy and state as they stand."""
        return fingerprint(), self.policy(), self.small_state()


class RayLearner:
    """The main loop's learner; keeps references to the last state, the policies in flight and the current step."""

    def __init__(self, run: Run, base: BaseModel, environment: dict[str, Any]) -> None:
        self.run, self.base, self.environment = run, base, environment
        self.step, self.lives = 0, 0
        self.known: list[tuple[int, str]] = []
        self.actor = self._start()
        self.started, self._policy, self._state = self.actor.start.options(num_returns=3).remote()

    def _start(self) -> Any:
        self.lives += 1
        options = {
            "name": f"{self.run.name}/learner-{self.lives}", "num_cpus": self.run.learner.cpus,
            "num_gpus": self.run.learner.gpus, "runtime_env": self.environment,
        }
        return ray.remote(LearnerActor).options(**options).remote(self.run, self.base)

    def policy(self) -> Policy:
        """The newest policy."""
        return self._get(self._policy)

    def state(self) -> State:
        """Weights and moments, as in Learner.state."""
        return self._get(self._state) or self._get(self.actor.state.remote())

    def restore(self, step: int, arrays: State, known: Sequence[tuple[int, str]]) -> None:
        """Stand where the state was taken."""
        self.step, self.known, self._state = step, list(known), ray.put(arrays)
        self._get(self.actor.restore.remote(step, self._state, self.known))
        _, self._policy, self._state = self.actor.start.options(num_returns=3).remote()

    def update(self, scored: Scored, advantages_B: NDArray[np.float64]) -> Report:
        """Learn from a batch; where the actor dies, rebuild it and learn from the same batch again."""
        self.known = self.known or [(self.policy().version, self.policy().digest)]
        cause: RayActorError | None = None
        for _ in range(REBUILDS):
            try:
                if cause:
                    self._rebuild()
                trajectories = [chunk.trajectory for chunk in scored.chunks]
                call = self.actor.learn.options(num_returns=3, name=f"learn step {self.step + 1}")
                report, policy, state = call.remote(trajectories, advantages_B, scored.kept_B)
                answer: Report = self._get(report)
            except RayActorError as error:
                cause = error
                continue
            except ObjectLostError:
                for chunk in scored.chunks:
                    chunk.renew(self.run.actors.timeout)
                continue
            self._published(answer, policy, state)
            return answer
        raise WorkerError(
            f"the learner died {REBUILDS} times in step {self.step + 1}: {cause}. `--resume` goes on from the last "
            "checkpoint once the cause is mended."
        )

    def _published(self, report: Report, policy: Any, state: Any) -> None:
        self.step, self._policy, self._state = report.version, policy, state
        newest: Policy = self._get(policy)
        self.known = [*self.known, (newest.version, newest.digest)][-(self.run.lag + 1) :]

    def _rebuild(self) -> None:
        if self._get(self._state) is None:
            raise WorkerError(
                f'the learner died in step {self.step + 1}. With policy.train = "full" its state is kept in '
                "checkpoints only, since it is several times the model's size: `--resume` goes on from the last one."
            )
        self.actor = self._start()
        self._get(self.actor.restore.remote(self.step, self._state, self.known))

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=self.run.learner.timeout)
        except RayTaskError as error:
            passed = isinstance(error.cause, DdpoError | ObjectLostError)
            raise (error.cause if passed else WorkerError(str(error))) from None
        except GetTimeoutError:
            raise DeadlineError(
                f"step {self.step + 1} was not learned within learner.timeout = {self.run.learner.timeout:g} s. Raise "
                "it if the step is that long (`--check` prints its arithmetic)."
            ) from None
