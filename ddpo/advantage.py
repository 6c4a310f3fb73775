"""From rewards to the factor of each image's loss: per-prompt advantages A = (r - mean_c) / std_c, or RWR's weights.

Consumes a `Scored` batch, produces advantages of shape (B,); keeps the buffers, which go into the checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ddpo.config import AdvantageConfig, Run
from ddpo.types import Scored


def penalised(scored: Scored, weight: float) -> NDArray[np.float64]:
    """r - weight * KL(p || p_base), (B,): leaving the base has a price (DPOK, Fan et al. 2023)."""
    return scored.rewards_B - weight * scored.kl_B if weight else scored.rewards_B


class RewardWeights:
    """RWR's weights in place of advantages, per prompt (Black et al. 2023, section 4.2 and appendix D.3).

    rwr:         w = softmax(inverse_temperature * r) over the prompt's images, times their number
    rwr-sparse:  w = 1 where r is at or above the prompt's quantile, else 0

    The mean over a prompt's images is 1 for rwr. Masked images get 0. Nothing is kept from batch to batch.
    """

    def __init__(self, config: AdvantageConfig, sparse: bool) -> None:
        self.config, self.sparse = config, sparse

    def __call__(self, scored: Scored) -> NDArray[np.float64]:
        """Weights (B,) of one batch."""
        rewards_B = penalised(scored, self.config.kl)
        weights = np.zeros(len(rewards_B))
        names = np.array(scored.prompts.text)
        for prompt in dict.fromkeys(scored.prompts.text):
            mine = (names == prompt) & scored.kept_B
            if mine.any():
                weights[mine] = self._of(rewards_B[mine])
        return weights

    def _of(self, rewards_K: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.sparse:
            return (rewards_K >= np.quantile(rewards_K, self.config.percentile)).astype(np.float64)
        powers = np.exp(self.config.inverse_temperature * (rewards_K - rewards_K.max()))
        return len(rewards_K) * powers / powers.sum()

    def state(self) -> dict[str, list[float]]:
        """Nothing to keep."""
        return {}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Nothing was kept."""


def advantage(run: Run) -> Advantage | RewardWeights:
    """What turns rewards into the factor of each image's loss, for the run's algorithm."""
    if run.learner.algorithm.startswith("rwr"):
        return RewardWeights(run.advantage, run.learner.algorithm == "rwr-sparse")
    return Advantage(run.advantage)


class Advantage:
    """Statistics as in ddpo-pytorch (Black et al. 2023, appendix D.3), fed in the order of image ids.

    1. extend the prompt's buffer with the new rewards;
    2. fewer than min_count there: mean and std of this batch, else of the buffer;
    3. A = (r - mean) / (std + 1e-6).

    Over a group (Shao et al. 2024, GRPO), the statistics are of this batch's images of the prompt; over the batch, of
    all its images, A = (r - mean) / (std + 1e-8). Rewards come sorted by image, so the result does not depend on which
    worker was faster. Masked images take no part and get A = 0.
    """

    def __init__(self, config: AdvantageConfig) -> None:
        self.config = config
        self.buffers: dict[str, deque[float]] = {}

    def __call__(self, scored: Scored) -> NDArray[np.float64]:
        """Advantages (B,) of one batch, not yet clipped."""
        kept = scored.kept_B
        advantages = np.zeros(len(kept))
        if kept.any():
            text = [text for text, keep in zip(scored.prompts.text, kept, strict=True) if keep]
            advantages[kept] = self._of(text, penalised(scored, self.config.kl)[kept])
        return advantages

    def _of(self, text: Sequence[str], rewards_K: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.config.over == "batch":
            return (rewards_K - rewards_K.mean()) / (rewards_K.std() + 1e-8)
        names = np.array(text)
        advantages = np.empty_like(rewards_K)
        for prompt in dict.fromkeys(text):
            mine = names == prompt
            mean, std = self._statistics(prompt, rewards_K[mine], rewards_K)
            advantages[mine] = (rewards_K[mine] - mean) / (std + 1e-6)
        return advantages

    def _statistics(
        self, prompt: str, mine: NDArray[np.float64], batch: NDArray[np.float64]
    ) -> tuple[float, float]:
        if self.config.over == "group":
            return float(mine.mean()), float(mine.std())
        buffer = self.buffers.setdefault(prompt, deque(maxlen=self.config.buffer))
        buffer.extend(mine.tolist())
        known = batch if len(buffer) < self.config.min_count else np.array(buffer)
        return float(known.mean()), float(known.std())

    def state(self) -> dict[str, list[float]]:
        """The buffers, for a checkpoint."""
        return {prompt: list(buffer) for prompt, buffer in self.buffers.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Put the buffers of a checkpoint back."""
        self.buffers = {prompt: deque(values, maxlen=self.config.buffer) for prompt, values in state.items()}
