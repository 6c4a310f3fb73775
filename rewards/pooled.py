"""The rewards of a run as pools of processes, on Ray or simulated, that score as images arrive.

Consumes `Rollouts` that are being drawn, produces a batch whose `wait` gives `Scored`. Waits, with a deadline that
starts anew whenever a chunk comes in, for samplers and rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ddpo.arrival import Arrival, arrive
from ddpo.config import RewardConfig, Run
from ddpo.control import Control
from ddpo.deadline import stacks_after
from ddpo.errors import DeadlineError, WorkerError
from ddpo.pool import Pool
from ddpo.sizing import Size
from ddpo.stages import Stage, stages
from ddpo.types import Captions, Chunk, Images, Rollouts, Scored, Scores
from ddpo.work import LOGS, Call, Failed, Gone, Poison, numbered
from rewards.batch import combine
from rewards.worker import RewardWorker

GRACE = 30.0  # a worker enforces its own timeout; its pool steps in where that did not help (endless C code)
TRIES = 3  # as often may a chunk take its worker with it or fail, or its images be lost with their node


class RewardActor(RewardWorker):
    """A RewardWorker that says which code it runs."""

    def __repr__(self) -> str:
        """On Ray's dashboard."""
        return f"{self.verb}:{self.name}"

    def arrival(self) -> Arrival:
        """Which code it runs, and on what."""
        return arrive(self.title, self.settings.device)

    def _guarded(self, chunk: Images | Captions, seen: Any) -> tuple[Any, dict[int, str], dict[str, float]]:
        """As RewardWorker's; where no timeout helps, its stacks are in its log before the pool ends it."""
        with stacks_after(self.settings.timeout + GRACE / 2):
            return super()._guarded(chunk, seen)

    def _given_up(self, reason: str) -> str:
        raise Failed(reason)


@dataclass(frozen=True)
class InFlight:
    """A batch whose samples and scores are on their way."""

    rollouts: Rollouts
    scores: Mapping[str, list[Future[Scores]]]
    config: Mapping[str, RewardConfig]
    pools: Mapping[str, Pool]
    control: Control
    patience: float

    def wait(self) -> Scored:
        """All scores of the batch; raises DeadlineError where nothing moves for `patience` seconds."""
        step, chunks = self.rollouts.prompts.step + 1, self.rollouts.chunks
        futures = [future for parts in self.scores.values() for future in parts]
        try:
            drawn = [chunk.future for chunk in chunks]
            self.control.collect(drawn, self.patience, f"chunks of step {step} are not drawn")
            self.control.collect(futures, self.patience, f"chunks of step {step} are not scored")
        except DeadlineError as error:
            states = [self.control.call(pool.state) for pool in (chunks[0].pool, *self.pools.values())]
            raise DeadlineError(
                f"{error} {'; '.join(map(str, states))}. Look at the workers' logs ({LOGS}); for slow work "
                "raise actors.timeout or rewards.NAME.timeout."
            ) from None
        scores = {name: [future.result() for future in parts] for name, parts in self.scores.items()}
        return combine(self.rollouts, [chunk.receipt for chunk in chunks], scores, self.config)


class PooledRewards:
    """A pool for every stage of every reward, from `workers` to `max_workers`; scores do not depend on which worker
    gives them."""

    def __init__(self, run: Run, source: dict[str, str], control: Control, staff: Any) -> None:
        self.config, self.gpu, self.control, self.steps = run.rewards, run.gpu, control, run.steps
        every = stages(run.rewards)
        self.chains = {name: [stage for stage in every if stage.reward == name] for name in run.rewards}
        longest = max(sum(stage.wants.timeout for stage in chain) for chain in self.chains.values())
        self.patience = TRIES * (run.actors.timeout + longest + GRACE) + run.ray.timeout  # pools' deadlines come first
        self.pools = {stage.pool: self._open(stage, source[stage.reward], staff) for stage in every}

    def _open(self, stage: Stage, source: str, staff: Any) -> Pool:
        wants, facts = stage.wants, (stage.reward, self.config[stage.reward], source, stage.verb, self.gpu)
        hire = staff.hire(f"reward:{stage.pool}", RewardActor, facts, wants, wants.timeout + GRACE)
        pool = Pool(stage.pool, hire, Size(wants.workers, max(wants.workers, wants.max_workers)), TRIES)
        self.control.call(pool.open)
        return pool

    @property
    def workers(self) -> dict[str, int]:
        """How many workers every pool has now."""
        return {name: self.control.call(pool.state).workers for name, pool in self.pools.items()}

    @property
    def done(self) -> int:
        """Chunks that went through a stage."""
        return sum(pool.done for pool in self.pools.values())

    def standing(self) -> str:
        """How the pools stand, for a person."""
        return "; ".join(str(self.control.call(pool.state)) for pool in self.pools.values())

    def score(self, rollouts: Rollouts) -> InFlight:
        """Have every chunk scored by every reward as soon as it is drawn; returns at once."""
        scores = {
            name: [self.control.spawn(self._score(name, drawing)) for drawing in rollouts.chunks]
            for name in self.chains
        }
        return InFlight(rollouts, scores, self.config, self.pools, self.control, self.patience)

    async def _score(self, name: str, drawing: Any) -> Scores:
        chunk = await drawing.here()
        for tried in range(TRIES):
            chunk = await drawing.again(chunk) if tried else chunk
            try:
                return await self._through(self.chains[name], chunk)
            except Gone:
                continue
            except (Failed, Poison) as loss:
                reason = str(loss) if isinstance(loss, Failed) else f"reward {name!r}: {loss}"
                return Scores(chunk.receipt.ids, {}, dict.fromkeys(chunk.receipt.ids, reason), {}, {})
        raise WorkerError(f"the images of a chunk were lost with their node {TRIES} times before {name!r} scored them.")

    async def _through(self, chain: list[Stage], chunk: Chunk) -> Scores:
        """Only the first stage fetches the images; what it makes of them is small and comes by way of the driver."""
        made, receipt = chunk.images, chunk.receipt
        for stage in chain:
            label = f"{stage.verb}:{stage.reward} v{numbered(receipt.version, self.steps)}"
            call = Call(stage.verb, (made,), 1, label, len(receipt.ids))
            made, = await self.pools[stage.pool].submit(call)
        return made
