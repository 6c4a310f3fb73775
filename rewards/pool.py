"""The rewards of a run in one process: the same verbs as on Ray, computed at once.

Consumes `Rollouts`, produces a batch that is already scored; waits for the rewards, each chunk at most its timeout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ddpo.config import GpuConfig, RewardConfig, Run
from ddpo.stages import verbs
from ddpo.types import Images, Rollouts, Scored, Scores
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


class LocalReward:
    """One reward in this process, with a worker for every stage that is a pool on a cluster."""

    def __init__(self, name: str, config: RewardConfig, source: str, gpu: GpuConfig | None = None) -> None:
        self.config = config
        self.workers = {verb: RewardWorker(name, config, source, verb, gpu) for verb in verbs(config)}

    def score(self, images: Images) -> Scores:
        """Take one chunk through all stages; raises RewardError where a contract is broken."""
        made: Any = images
        for verb, worker in self.workers.items():
            made = getattr(worker, verb)(made)
        return made


class LocalRewards:
    """All rewards in this process."""

    workers: Mapping[str, int] = MappingProxyType({})  # none but this process

    def __init__(self, run: Run, source: dict[str, str]) -> None:
        self.config = run.rewards
        self.scorers = {name: LocalReward(name, reward, source[name], run.gpu) for name, reward in run.rewards.items()}
        self.done = 0  # chunks scored, by one reward each

    def score(self, rollouts: Rollouts) -> Ready:
        """Score all chunks, one after the other."""
        scores = {
            name: [self._chunk(scorer, chunk.images) for chunk in rollouts.chunks]
            for name, scorer in self.scorers.items()
        }
        return Ready(combine(rollouts, [chunk.receipt for chunk in rollouts.chunks], scores, self.config))

    def _chunk(self, scorer: LocalReward, images: Images) -> Scores:
        scores = scorer.score(images)
        self.done += 1
        return scores

    def standing(self) -> str:
        """How they stand, for a person."""
        return f"rewards: this process, {self.done} chunks scored"
