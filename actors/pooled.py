"""The samplers of a run as a pool of processes, on Ray or simulated.

Consumes `Prompts` and a `Policy`, produces `Rollouts` whose chunks are being drawn; waits for nothing. The policy
travels with every call and a sampler loads it only when it is new, so that whoever draws a chunk, for the first time or
again, draws the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from actors.sampler import FEWER, Sampler
from ddpo.arrival import Arrival, arrive
from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.control import Control, within
from ddpo.deadline import stacks_after
from ddpo.device import fitting
from ddpo.pool import Pool
from ddpo.sizing import Size
from ddpo.types import Chunk, Images, Policy, Prompts, Receipt, Rollouts, Trajectory
from ddpo.work import Call, numbered

HUNG = 0.9  # share of its timeout after which a sampler's stacks are written
YIELD = 5  # niceness above the learner's: a batch ahead can wait, the learner is what the next policy waits for


class SamplerActor(Sampler):
    """A Sampler that says which code it runs, and gives way to the learner where they share processor cores."""

    def __init__(self, run: Run, base: BaseModel) -> None:
        os.nice(YIELD)
        super().__init__(run, base)

    def __repr__(self) -> str:
        """On Ray's dashboard."""
        return "sampler"

    def arrival(self) -> Arrival:
        """Which code it runs, and on what."""
        return arrive("the sampler", self.run.policy.device)

    def sample(self, prompts: Prompts, policy: Policy) -> tuple[Images, Trajectory, Receipt]:
        """As Sampler's; where it hangs, its stacks are in its log before the pool ends it."""
        with stacks_after(HUNG * self.run.actors.timeout), fitting(f"draw {len(prompts.ids)} images at once", FEWER):
            return super().sample(prompts, policy)


class Drawing:
    """A chunk that is being drawn, or drawn again where its objects were lost. Reads as a Chunk once it is there."""

    def __init__(self, control: Control, pool: Pool, call: Call) -> None:
        self.control, self.pool, self.call, self.turn = control, pool, call, pool.turn()
        self.future: Any = control.spawn(self._draw())

    async def _draw(self) -> Chunk:
        return Chunk(*await self.pool.submit(self.call, self.turn))

    async def here(self) -> Chunk:
        """The chunk, inside the loop."""
        return await within(self.future)

    async def again(self, lost: Chunk) -> Chunk:
        """The chunk in place of one that was lost, drawn once for all who miss it."""
        if self.future.done() and self.future.result() is lost:  # else somebody has asked for it already
            self.future = self.control.spawn(self._draw())
        return await self.here()

    @staticmethod
    def renew(drawings: Sequence[Drawing], seconds: float) -> None:
        """Have several drawn again, before all younger chunks, and wait, outside the loop; raises DeadlineError where
        none comes for so many seconds."""
        control = drawings[0].control
        drawn = [control.spawn(drawing.again(drawing.future.result())) for drawing in drawings]
        control.collect(drawn, seconds, "chunks that were lost are not drawn again")

    @property
    def images(self) -> Any:
        """Reference to its Images."""
        return self.future.result().images

    @property
    def trajectory(self) -> Any:
        """Reference to its Trajectory."""
        return self.future.result().trajectory

    @property
    def receipt(self) -> Receipt:
        """Its Receipt."""
        return self.future.result().receipt


class PooledSamplers:
    """From `actors.count` to `actors.max_count` samplers; results do not depend on which one draws a chunk."""

    def __init__(self, run: Run, base: BaseModel, control: Control, staff: Any) -> None:
        self.run, self.control, self.staff = run, control, staff
        hire = staff.hire("sampler", SamplerActor, (run, base), run.actors, run.actors.timeout)
        self.pool = Pool("samplers", hire, Size(run.actors.count, max(run.actors.count, run.actors.max_count)))
        control.call(self.pool.open)

    @property
    def workers(self) -> dict[str, int]:
        """How many samplers there are now."""
        return {self.pool.name: self.control.call(self.pool.state).workers}

    @property
    def done(self) -> int:
        """Chunks drawn."""
        return self.pool.done

    def standing(self) -> str:
        """How the pool stands, for a person."""
        return str(self.control.call(self.pool.state))

    def sample(self, prompts: Prompts, policy: Policy) -> Rollouts:
        """Have all chunks of a batch drawn; returns at once."""
        message, label = self.staff.put(policy), f"sample v{numbered(policy.version, self.run.steps)}"
        parts = prompts.chunks(self.run.actors.batch)
        calls = [Call("sample", (part, message), 3, label, len(part.ids)) for part in parts]
        return Rollouts(prompts, [Drawing(self.control, self.pool, call) for call in calls])
