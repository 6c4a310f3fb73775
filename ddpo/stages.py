"""The stages of the rewards: which pools a run has besides its samplers, and what a worker of each reserves.

Consumes the tables [rewards.NAME], produces `Stage`s in the order in which an image goes through them; waits for
nothing. A reward without tables of its stages is one stage, "score".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ddpo.config import STAGES, RewardConfig, StageConfig

WHOLE = "score"


@dataclass(frozen=True)
class Stage:
    """verb: what a worker is asked to do; pool: the name of the pool of such workers; wants: what one reserves."""

    reward: str
    verb: str
    pool: str
    wants: RewardConfig | StageConfig


def stages(rewards: Mapping[str, RewardConfig]) -> list[Stage]:
    """All stages of all rewards. A pool has its reward's name, or its stage's; where two would have it, NAME.STAGE."""
    parts = [(name, verb) for name, reward in rewards.items() for verb in verbs(reward)]
    taken = Counter(["samplers", *rewards, *(verb for _, verb in parts)])
    return [
        Stage(name, verb, _pool(name, verb, taken), settings(rewards[name], verb)) for name, verb in parts
    ]


def verbs(reward: RewardConfig) -> tuple[str, ...]:
    """What is done to an image, one after the other, each in a pool of its own."""
    return STAGES[reward.kind] if reward.stages else (WHOLE,)


def settings(reward: RewardConfig, verb: str) -> RewardConfig | StageConfig:
    """Where a stage's workers, device and reservations are stated: in its own table, or in the whole reward's."""
    return reward.stages.get(verb, reward)


def _pool(name: str, verb: str, taken: Mapping[str, int]) -> str:
    if verb == WHOLE:
        return name
    return verb if taken[verb] == 1 else f"{name}.{verb}"
