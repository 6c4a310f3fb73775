"""The samplers of a run on Ray: stateless calls to restartable actors.

Consumes `Prompts` and a `Policy`, produces `Rollouts` whose chunks are Ray references; waits for nothing but the
samplers' start. The policy travels with every call and a sampler loads it only when it is new, so a sampler that died
and was restarted by Ray draws exactly what it would have drawn.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from actors.sampler import Sampler
from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.source import fingerprint
from ddpo.types import Chunk, Policy, Prompts, Rollouts

YIELD = 5  # niceness above the learner's: a batch ahead can wait, the learner is what the next policy waits for


class SamplerActor(Sampler):
    """A Sampler that says which code it runs, and gives way to the learner where they share processor cores."""

    def __init__(self, run: Run, base: BaseModel) -> None:
        os.nice(YIELD)
        super().__init__(run, base)

    def fingerprint(self) -> str:
        """Of the sources on its node."""
        return fingerprint()


class RaySamplers:
    """`actors.count` samplers; chunk i goes to sampler i modulo count, results do not depend on which."""

    def __init__(self, run: Run, base: BaseModel, environment: dict[str, Any]) -> None:
        self.size = run.actors.batch
        self.actors = [self._start(run, base, environment, index) for index in range(run.actors.count)]
        self.started = [actor.fingerprint.options(max_task_retries=0).remote() for actor in self.actors]

    def _start(self, run: Run, base: BaseModel, environment: dict[str, Any], index: int) -> Any:
        options = {
            "name": f"{run.name}/sampler-{index}", "num_cpus": run.actors.cpus, "num_gpus": run.actors.gpus,
            "max_restarts": -1, "max_task_retries": 3, "runtime_env": environment,
        }
        return ray.remote(SamplerActor).options(**options).remote(run, base)

    def sample(self, prompts: Prompts, policy: Policy) -> Rollouts:
        """Submit all chunks of a batch and return at once; the results come in the references."""
        message = ray.put(policy)
        chunks = []
        for index, part in enumerate(prompts.chunks(self.size)):
            actor = self.actors[index % len(self.actors)]
            call = actor.sample.options(num_returns=3, name=f"sample v{policy.version}")
            chunks.append(Chunk(*call.remote(part, message)))
        return Rollouts(prompts, chunks)
