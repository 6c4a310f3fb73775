"""The learner on Ray: one actor for each rank, all rebuilt from the last published state where one dies or hangs.

Consumes scored batches of references, produces reports and policies; waits, with a deadline, for the update.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.experimental import get_object_locations
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.control import Control
from ddpo.errors import DdpoError, DeadlineError, WorkerError
from ddpo.types import Policy, Report, Scored
from ddpo.work import Failed, Gone, Lost, numbered
from learner.ray_rank import GROUPS, LearnerActor, State
from learner.recovery import TRIES, Hung, outlived, stand

LOOK = 30_000  # milliseconds to find out where trajectories are
ASK = 1.0  # seconds between two questions to the ranks how far they are


class RayLearner:
    """The main loop's learner; keeps the newest policy and state, the policies in flight and the current step.

    labels: what the nodes of its ranks must have
    arrived: waits for a rank's Arrival; raises Lost where it died, WorkerError where it runs other code
    standing: done once all ranks have loaded the model and met
    """

    def __init__(
        self, run: Run, base: BaseModel, environment: dict[str, Any], labels: dict[str, str], control: Control,
        arrived: Callable[[Any], Awaitable[None]],
    ) -> None:
        self.run, self.base, self.environment, self.labels = run, base, environment, labels
        self.control, self.arrived = control, arrived
        self.step, self.lives, self.ranks = 0, 0, run.learner.ranks
        self.known: list[tuple[int, str]] = []
        self.held: tuple[Policy, State | None] | None = None
        self.group = self._together() if self.ranks > 1 else None
        self.actors: list[Any] = []
        self.counts, self.questions = list[int](), list[Any]()  # each rank's progress, and what asks for the next
        self.standing = control.spawn(stand(self))

    def _reserved(self) -> dict[str, float]:
        options = self.run.learner
        return {kind: amount for kind, amount in (("CPU", options.cpus), ("GPU", options.gpus)) if amount}

    def _together(self) -> PlacementGroup:
        """Room for all ranks, which keeps their places while they are rebuilt."""
        return placement_group(
            [self._reserved()] * self.ranks, strategy="PACK", bundle_label_selector=[self.labels] * self.ranks
        )

    def start(self) -> None:
        """Start all ranks; does not wait for them."""
        self.lives += 1
        self.actors = [self._rank(rank) for rank in range(self.ranks)]
        self.counts, self.questions = [0] * self.ranks, [actor.progress.remote() for actor in self.actors]
        address = self.actors[0].meet.remote() if self.ranks > 1 else None
        self.arriving = [actor.start.options(name="load").remote(address) for actor in self.actors]

    async def up(self) -> None:
        """Wait until all ranks have loaded the model and met; raises Lost where one died over it."""
        try:
            await asyncio.gather(*(self.arrived(reference) for reference in self.arriving))
        except RayError as error:
            ours = _ours(error)  # what nobody foresaw may pass, as memory that is not yet given back by a rank before
            raise (Lost(f"did not start: {ours}") if isinstance(ours, Failed) else ours) from None

    def _rank(self, rank: int) -> Any:
        options: dict[str, Any] = {
            "name": f"{self.run.name}/learner-{rank}" + (f", life {self.lives}" if self.lives > 1 else ""),
            "num_cpus": self.run.learner.cpus, "num_gpus": self.run.learner.gpus, "runtime_env": self.environment,
        }
        if self.group:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.group, rank)
        else:
            options["label_selector"] = self.labels
        remote: Any = ray.remote
        return remote(concurrency_groups=GROUPS)(LearnerActor).options(**options).remote(self.run, self.base, rank)

    def close(self) -> None:
        """Give back what the ranks reserved."""
        if self.group:
            remove_placement_group(self.group)

    def policy(self) -> Policy:
        """The newest policy."""
        return self._newest()[0]

    def state(self) -> State:
        """Weights and moments, as in Learner.state."""
        return self._newest()[1] or outlived(self, self._state)

    def _state(self) -> State:
        return self._get(self.actors[0].state.remote(), f"the state after step {self.step} did not come")

    def _newest(self) -> tuple[Policy, State | None]:
        """Policy and state in this process, so that no death of a node takes them along."""
        self.held = self.held or outlived(self, self._published)
        return self.held

    def _published(self) -> tuple[Policy, State | None]:
        what = f"the policy of step {self.step} did not come"
        policy, state = self.actors[0].published.options(num_returns=2).remote()
        return self._get(policy, what), self._get(state, what)

    def restore(self, step: int, arrays: State, known: Sequence[tuple[int, str]]) -> None:
        """Stand where the state was taken."""
        self.step, self.known, self.held = step, list(known), None
        outlived(self, lambda: self._restore(arrays))

    def _restore(self, arrays: State) -> None:
        shared = ray.put(arrays)
        calls = [actor.restore.remote(self.step, shared, self.known) for actor in self.actors]
        self._await(calls, f"the state after step {self.step} was not restored")
        self.held = self._published()

    def update(self, scored: Scored, advantages_B: NDArray[np.float64]) -> Report:
        """Learn from a batch; where a rank dies or hangs, rebuild all of them and learn from the same batch again."""
        self.known = self.known or [(self.policy().version, self.policy().digest)]
        return outlived(self, lambda: self._learn(scored, advantages_B), lambda: self._renew(scored))

    def _learn(self, scored: Scored, advantages_B: NDArray[np.float64]) -> Report:
        """One step of all ranks; nothing is published before all have ended it."""
        trajectories, ids = [chunk.trajectory for chunk in scored.chunks], scored.prompts.ids
        label = f"learn step {numbered(self.step + 1, self.run.steps)}"
        calls = [
            actor.learn.options(num_returns=3, name=label).remote(trajectories, ids, advantages_B, scored.kept_B)
            for actor in self.actors
        ]
        what = f"step {self.step + 1} was not learned"
        self._await([call[0] for call in calls], what)
        report, policy, state = (self._get(reference, what) for reference in calls[0])
        self.step, self.held = report.version, (policy, state)
        self.known = [*self.known, (policy.version, policy.digest)][-(self.run.lag + 1) :]
        return report

    def _renew(self, scored: Scored) -> None:
        """Have the trajectories drawn again that are gone."""
        if self.group:  # the other ranks are in the midst of the step, and wait for the one that missed them
            self.end()
        lost = _missing(scored.chunks)
        lost[0].renew(lost, TRIES * self.run.actors.timeout + self.run.ray.timeout)  # samplers may be gone too

    def end(self) -> None:
        """End all ranks, whatever they are doing."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors, self.questions = [], []

    def rebuild(self) -> None:
        """Start all ranks and have them stand where the last step ended; at the run's start they do by themselves."""
        state = self.held[1] if self.held else None
        if self.held and self.step and state is None:
            raise WorkerError(
                f'the learner died in step {self.step + 1}. With policy.train = "full" its state is kept in '
                "checkpoints only, since it is several times the model's size: `--resume` goes on from the last one."
            )
        self.standing = self.control.spawn(stand(self))
        try:
            self.standing.result(self.run.ray.timeout)
        except TimeoutError:
            self.standing.cancel()
            raise DeadlineError(self._no_room()) from None
        if state:
            self._restore(state)

    def _no_room(self) -> str:
        needed, free = self._reserved(), ray.available_resources()
        where = "".join(f", {key}={value}" for key, value in self.labels.items())
        return (
            f"the learner died in step {self.step + 1} and was not there again after ray.timeout = "
            f"{self.run.ray.timeout:g} s: it needs {self.ranks} x {_shown(needed)}{where}; free on the cluster are "
            f"{_shown({kind: free.get(kind, 0.0) for kind in needed})}. `--resume` goes on from the last checkpoint."
        )

    def _await(self, references: list[Any], what: str) -> None:
        """Until all are there; raises what the first to fail raised, and Hung, which says `what`, once no rank has
        moved on for learner.timeout: a rank that waits for one that hangs does not move either."""
        end = time.monotonic() + self.run.learner.timeout
        while references:
            if self._has_moved():
                end = time.monotonic() + self.run.learner.timeout
            left = end - time.monotonic()
            if left <= 0:
                seconds = f"learner.timeout = {self.run.learner.timeout:g} s"
                raise Hung(f"{what}: no rank has finished a micro-batch for {seconds}")
            done, references = ray.wait(references, timeout=min(ASK, left))
            for reference in done:
                self._get(reference, what)

    def _has_moved(self) -> bool:
        """Read what the ranks have answered since the last time, and ask those anew; waits for nobody."""
        before = self.progress
        for rank, question in enumerate(self.questions):
            if ray.wait([question], timeout=0)[0]:
                with suppress(RayError):  # of a rank that is gone what it was to do will tell
                    self.counts[rank] = ray.get(question)
                self.questions[rank] = self.actors[rank].progress.remote()
        return self.progress != before

    @property
    def progress(self) -> int:
        """Grows with every micro-batch, as far as it is known."""
        return sum(self.counts)

    def _get(self, reference: Any, what: str) -> Any:
        try:
            return ray.get(reference, timeout=self.run.learner.timeout)
        except GetTimeoutError:
            raise Hung(f"{what} within learner.timeout = {self.run.learner.timeout:g} s") from None
        except RayError as error:
            raise _ours(error) from None


def _ours(error: Exception) -> Exception:
    """What a rank raised, or what became of it."""
    if isinstance(error, RayTaskError):
        known = isinstance(error.cause, DdpoError | Lost | RayActorError | ObjectLostError)
        return _ours(error.cause) if known else Failed(str(error))
    if isinstance(error, RayActorError | OutOfMemoryError):
        return Lost(str(error))
    if isinstance(error, ObjectLostError):
        return Gone(str(error))
    return WorkerError(str(error)) if isinstance(error, RayError) else error


def _missing(chunks: Sequence[Any]) -> list[Any]:
    """The chunks whose trajectories no living node holds; every one where none is found."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    places = get_object_locations([chunk.trajectory for chunk in chunks], LOOK)
    there = {reference for reference, found in places.items() if alive & set(found["node_ids"])}
    return [chunk for chunk in chunks if chunk.trajectory not in there] or list(chunks)


def _shown(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
