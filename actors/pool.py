"""The samplers of a run in one process: the same verbs as on Ray, computed at once.

Consumes `Prompts` and a `Policy`, produces `Rollouts` whose chunks are the objects themselves; waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from actors.sampler import FEWER, Sampler
from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.device import fitting
from ddpo.types import Chunk, Policy, Prompts, Rollouts


class LocalSamplers:
    """One Sampler in this process."""

    workers: Mapping[str, int] = MappingProxyType({})  # none but this process

    def __init__(self, run: Run, base: BaseModel) -> None:
        self.size = run.actors.batch
        self.sampler = Sampler(run, base)
        self.done = 0  # chunks drawn

    def sample(self, prompts: Prompts, policy: Policy) -> Rollouts:
        """Draw all chunks of a batch, one after the other."""
        return Rollouts(prompts, [self._chunk(part, policy) for part in prompts.chunks(self.size)])

    def _chunk(self, part: Prompts, policy: Policy) -> Chunk:
        with fitting(f"draw {len(part.ids)} images at once", FEWER):
            chunk = Chunk(*self.sampler.sample(part, policy))
        self.done += 1
        return chunk

    def standing(self) -> str:
        """How it stands, for a person."""
        return f"samplers: this process, {self.done} chunks drawn"
