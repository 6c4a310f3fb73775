"""From the scores of every part to the reward of every image.

Consumes `Rollouts`, receipts and each part's `Scores`, produces `Scored`; waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpo.config import RewardConfig
from ddpo.errors import DdpoError, RewardError
from ddpo.stages import stages
from ddpo.types import Receipt, Rollouts, Scored, Scores


def combine(
    rollouts: Rollouts,
    receipts: Sequence[Receipt],
    scores: Mapping[str, Sequence[Scores]],
    config: Mapping[str, RewardConfig],
) -> Scored:
    """r = sum of weight * part; an image that could not be drawn, or lacks a part, is masked with the reason. A part of
    weight 0 is watched: it is logged, and an image may lack it.

    Raises DdpoError where no image of the batch could be drawn, and RewardError where all lack their reward: that is a
    broken model or reward, not bad luck. A grid of fixed prompts (step -1), which is a few images that nobody learns
    from, may go without.
    """
    ids = rollouts.prompts.ids
    undrawn = {image: why for receipt in receipts for image, why in receipt.failures.items()}
    if len(undrawn) == len(ids) and rollouts.prompts.step >= 0:
        raise DdpoError(
            f"none of the {len(ids)} images of step {rollouts.prompts.step + 1} could be drawn, so there is nothing to "
            f'learn from: {undrawn[ids[0]]}. In float16 some models overflow: write policy.dtype = "bfloat16" or '
            '"float32". Where earlier steps were well, the policy has run away: its checkpoints are whole, '
            "and a smaller learner.lr may keep it from that."
        )
    masked = {
        image: why
        for name, parts in scores.items() if config[name].weight
        for part in parts for image, why in part.failures.items()
    } | undrawn
    if len(masked) == len(ids) and rollouts.prompts.step >= 0:
        raise RewardError(
            f"no image of step {rollouts.prompts.step + 1} got a reward, so there is nothing to learn from. "
            f"First reason: {masked[ids[0]]}"
        )
    parts = {name: _in_order(ids, chunks) for name, chunks in scores.items()}
    trained = (config[name].weight * values for name, values in parts.items() if config[name].weight)
    total = sum(trained, np.zeros(len(ids)))
    total[[image in masked for image in ids]] = np.nan
    seconds = {
        "sample": sum(receipt.seconds for receipt in receipts),
        "score": sum(sum(part.seconds.values()) for chunks in scores.values() for part in chunks),
        **{
            f"score {stage.pool}": sum(part.seconds.get(stage.verb, 0.0) for part in scores[stage.reward])
            for stage in stages(config)
        },
    }
    info = {name: _info(ids, chunks) for name, chunks in scores.items()}
    return Scored(rollouts.prompts, total, parts, info, masked, receipts, rollouts.chunks, seconds)


def _in_order(ids: Sequence[int], chunks: Sequence[Scores]) -> np.ndarray:
    values = {image: value for chunk in chunks for image, value in chunk.values.items()}
    return np.array([values.get(image, np.nan) for image in ids])


def _info(ids: Sequence[int], chunks: Sequence[Scores]) -> dict[str, list[Any]]:
    known: dict[str, dict[int, Any]] = {}
    for chunk in chunks:
        for key, values in chunk.info.items():
            known.setdefault(key, {}).update(zip(chunk.ids, values, strict=True))
    return {key: [values.get(image) for image in ids] for key, values in known.items()}
