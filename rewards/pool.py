"""The rewards of a run in one process: the same verbs as on Ray, computed at once.

Consumes `Rollouts`, produces a batch that is already scored; waits for the rewards, each chunk at most its timeout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ddpo.config import RewardConfig, Run
from ddpo.types import Rollouts, Scored
from rewards.batch import combine
from rewards.function import read_source
from rewards.token import read_token
from rewards.worker import RewardWorker


def sources(run: Run) -> dict[str, str]:
    """What a worker needs from this machine's disk, by reward name: the text of a user's file, or a server's token.
    Raises InputError."""
    return {name: _source(name, reward) for name, reward in run.rewards.items()}


def _source(name: str, reward: RewardConfig) -> str:
    if reward.kind == "function":
        return read_source(reward.path, reward.function, name)
    return read_token(reward.token_file, f"rewards.{name}.token_file") if reward.kind == "http" else ""


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
