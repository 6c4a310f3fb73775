"""The learner on Ray: one actor for each rank, all rebuilt from the last published state where one of them dies.

Consumes scored batches of references, produces reports and policies; waits, with a deadline, for the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from ray.experimental import get_object_locations
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.delivery import proven
from ddpo.errors import DdpoError, DeadlineError, WorkerError
from ddpo.pool import Lost, numbered
from ddpo.source import fingerprint
from ddpo.types import Policy, Report, Scored
from learner.learner import Learner
from learner.ranks import Address, Ranks, meeting_point

State = dict[str, NDArray[Any]]
REBUILDS = 3  # deaths within one step before the run gives up
LOOK = 30_000  # milliseconds to find out where trajectories are


class LearnerActor(Learner):
    """One rank: a Learner that fetches its trajectories itself, so that they never pass through the driver.

    Each rank fetches all of them: minibatches are drawn from the whole batch, so its share has images of every chunk.
    """

    def __init__(self, run: Run, base: BaseModel, rank: int) -> None:
        super().__init__(run, base, Ranks(rank, run.learner.ranks))

    def __repr__(self) -> str:
        """On Ray's dashboard."""
        return "learner"

    def meet(self) -> Address:
        """Where the ranks meet, on this rank's node."""
        host = ray.util.get_node_ip_address()
        self.point = meeting_point(host)
        return host, self.point.port

    def start(self, address: Address | None) -> tuple[str, Policy | None, State | None]:
        """Join the other ranks at an address; fingerprint, and from rank 0 policy and state, as they stand.

        Ranks with a whole GPU each sum on it; those that share one sum on the host, since NCCL wants one for each.
        """
        if address:
            device = self.denoiser.device if self.run.learner.gpus >= 1 else torch.device("cpu")
            self.ranks.join(address, device, self.run.learner.timeout)
        return fingerprint(), *self.published()

    def learn(
        self, trajectories: list[Any], ids: Sequence[int], advantages_B: NDArray[np.float64], kept_B: NDArray[np.bool_]
    ) -> tuple[Report, Policy | None, State | None]:
        """Update; returns the report and, from rank 0, the next policy and the state to rebuild from.

        Every rank proves the batch to be that of the images `ids` before it meets the others, so all of them refuse it.
        """
        fetched = proven(ray.get(trajectories, timeout=self.run.learner.timeout), ids)
        report = self.update(fetched, advantages_B, kept_B)
        return report, *self.published()

    def published(self) -> tuple[Policy | None, State | None]:
        """Policy and LoRA's state, a few MB; a whole UNet's, over 10 GB for SD, only where it is asked for."""
        if self.ranks.rank:
            return None, None
        return self.policy(), self.state() if self.run.policy.train == "lora" else None


class RayLearner:
    """The main loop's learner; keeps the newest policy and state, the policies in flight and the current step.

    labels: what the nodes of its ranks must have
    started: a reference to each rank's fingerprint, there once it has loaded the model and met the others
    """

    def __init__(self, run: Run, base: BaseModel, environment: dict[str, Any], labels: dict[str, str]) -> None:
        self.run, self.base, self.environment, self.labels = run, base, environment, labels
        self.step, self.lives, self.ranks = 0, 0, run.learner.ranks
        self.known: list[tuple[int, str]] = []
        self.held: tuple[Policy, State | None] | None = None
        self.group = self._together() if self.ranks > 1 else None
        self.actors: list[Any] = []
        self._start()

    def _reserved(self) -> dict[str, float]:
        options = self.run.learner
        return {kind: amount for kind, amount in (("CPU", options.cpus), ("GPU", options.gpus)) if amount}

    def _together(self) -> PlacementGroup:
        """Room for all ranks, which keeps their places while they are rebuilt."""
        return placement_group(
            [self._reserved()] * self.ranks, strategy="PACK", bundle_label_selector=[self.labels] * self.ranks
        )

    def _start(self) -> None:
        """Start all ranks; does not wait for them."""
        self.lives += 1
        self.actors = [self._rank(rank) for rank in range(self.ranks)]
        address = self.actors[0].meet.remote() if self.ranks > 1 else None
        calls = [actor.start.options(num_returns=3, name="load").remote(address) for actor in self.actors]
        self.started = [call[0] for call in calls]
        self.first = calls[0][1:]

    def _rank(self, rank: int) -> Any:
        options: dict[str, Any] = {
            "name": f"{self.run.name}/learner-{rank}" + (f", life {self.lives}" if self.lives > 1 else ""),
            "num_cpus": self.run.learner.cpus, "num_gpus": self.run.learner.gpus, "runtime_env": self.environment,
        }
        if self.group:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.group, rank)
        else:
            options["label_selector"] = self.labels
        return ray.remote(LearnerActor).options(**options).remote(self.run, self.base, rank)

    def close(self) -> None:
        """Give back what the ranks reserved."""
        if self.group:
            remove_placement_group(self.group)

    def policy(self) -> Policy:
        """The newest policy."""
        return self._newest()[0]

    def state(self) -> State:
        """Weights and moments, as in Learner.state."""
        return self._newest()[1] or self._get(self.actors[0].state.remote())

    def _newest(self) -> tuple[Policy, State | None]:
        """Policy and state in this process, so that no death of a node takes them along."""
        if self.held is None:
            policy, state = self.first
            self.held = self._get(policy), self._get(state)
        return self.held

    def restore(self, step: int, arrays: State, known: Sequence[tuple[int, str]]) -> None:
        """Stand where the state was taken."""
        self.step, self.known, shared = step, list(known), ray.put(arrays)
        calls = [actor.restore.remote(step, shared, self.known) for actor in self.actors]
        self._await(calls, self.run.learner.timeout, self._late)
        policy, state = self.actors[0].published.options(num_returns=2).remote()
        self.held = self._get(policy), self._get(state)

    def update(self, scored: Scored, advantages_B: NDArray[np.float64]) -> Report:
        """Learn from a batch; where a rank dies, rebuild all of them and learn from the same batch again."""
        self.known = self.known or [(self.policy().version, self.policy().digest)]
        cause: Exception | None = None
        for _ in range(REBUILDS):
            try:
                if not self.actors:
                    self._rebuild()
                return self._learn(scored, advantages_B)
            except (RayActorError, Lost) as error:
                cause = error
                self._end()
            except ObjectLostError as error:
                cause = error
                if self.group:  # the other ranks are in the midst of the step, and wait for this one
                    self._end()
                lost = _missing(scored.chunks, error)
                lost[0].renew(lost, self.run.actors.timeout)
        raise WorkerError(
            f"the learner died {REBUILDS} times in step {self.step + 1}: {cause}. `--resume` goes on from the last "
            "checkpoint once the cause is mended."
        )

    def _learn(self, scored: Scored, advantages_B: NDArray[np.float64]) -> Report:
        """One step of all ranks; nothing is published before all have ended it."""
        trajectories, ids = [chunk.trajectory for chunk in scored.chunks], scored.prompts.ids
        label = f"learn step {numbered(self.step + 1, self.run.steps)}"
        calls = [
            actor.learn.options(num_returns=3, name=label).remote(trajectories, ids, advantages_B, scored.kept_B)
            for actor in self.actors
        ]
        self._await([call[0] for call in calls], self.run.learner.timeout, self._late)
        report, policy, state = (self._get(reference) for reference in calls[0])
        self.step, self.held = report.version, (policy, state)
        self.known = [*self.known, (policy.version, policy.digest)][-(self.run.lag + 1) :]
        return report

    def _end(self) -> None:
        """End all ranks, whatever they are doing."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def _rebuild(self) -> None:
        state = self._newest()[1]
        if state is None:
            raise WorkerError(
                f'the learner died in step {self.step + 1}. With policy.train = "full" its state is kept in '
                "checkpoints only, since it is several times the model's size: `--resume` goes on from the last one."
            )
        self._start()
        self._await(self.started, self.run.ray.timeout, self._no_room)
        self.restore(self.step, state, self.known)

    def _late(self) -> str:
        return (
            f"step {self.step + 1} was not learned within learner.timeout = {self.run.learner.timeout:g} s. Raise "
            "it if the step is that long (`--check` prints its arithmetic)."
        )

    def _no_room(self) -> str:
        needed, free = self._reserved(), ray.available_resources()
        where = "".join(f", {key}={value}" for key, value in self.labels.items())
        return (
            f"the learner died in step {self.step + 1} and was not there again after ray.timeout = "
            f"{self.run.ray.timeout:g} s: it needs {self.ranks} x {_shown(needed)}{where}; free on the cluster are "
            f"{_shown({kind: free.get(kind, 0.0) for kind in needed})}. `--resume` goes on from the last checkpoint."
        )

    def _await(self, references: list[Any], seconds: float, late: Callable[[], str]) -> None:
        """Until all are there; raises what the first to fail raised, and DeadlineError after so many seconds."""
        end = time.monotonic() + seconds
        while references:
            done, references = ray.wait(references, timeout=max(0.0, end - time.monotonic()))
            if not done:
                raise DeadlineError(late())
            self._get(done[0])

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=self.run.learner.timeout)
        except RayTaskError as error:
            passed = isinstance(error.cause, DdpoError | ObjectLostError | RayActorError | Lost)
            raise (error.cause if passed else WorkerError(str(error))) from None
        except GetTimeoutError:
            raise DeadlineError(self._late()) from None


def _missing(chunks: Sequence[Any], error: ObjectLostError) -> list[Any]:
    """The chunks whose trajectories were lost: the one that the error names, and all that were on nodes that are dead;
    every one where none is found."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    places = get_object_locations([chunk.trajectory for chunk in chunks], LOOK)
    there = {reference for reference, found in places.items() if alive & set(found["node_ids"])}
    lost = [
        chunk for chunk in chunks
        if chunk.trajectory not in there or chunk.trajectory.hex() == error.object_ref_hex
    ]
    return lost or list(chunks)


def _shown(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
