"""The rewards of a run in one process: the same verbs as on Ray, computed at once.

Consumes `Rollouts`, produces a batch that is already scored; waits for the rewards, each chunk at most its timeout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ddpo.config import Run
from ddpo.types import Rollouts, Scored
from rewards.batch import combine
from rewards.function import read_source
from rewards.worker import RewardWorker


def sources(run: Run) -> dict[str, str]:
    """The text of every user's reward file, by reward name; raises InputError."""
    return {
        name: read_source(reward.path, reward.function, name) if reward.kind == "function" else ""
        for name, reward in run.rewards.items()
    }


@dataclass(frozen=True)
class Ready:
    """A batch that needs no waiting."""

    scored: Scored

    def wait(self) -> Scored:
        """Return at once."""
        return self.scored


class LocalRewards:
    """One worker per reward in this process."""

    workers: Mapping[str, int] = MappingProxyType({})  # none but this process

    def __init__(self, run: Run, source: dict[str, str]) -> None:
        self.config = run.rewards
        self.scorers = {name: RewardWorker(name, reward, source[name]) for name, reward in run.rewards.items()}

    def score(self, rollouts: Rollouts) -> Ready:
        """Score all chunks, one after the other."""
        scores = {
            name: [worker.score(chunk.images) for chunk in rollouts.chunks] for name, worker in self.scorers.items()
        }
        return Ready(combine(rollouts, [chunk.receipt for chunk in rollouts.chunks], scores, self.config))
