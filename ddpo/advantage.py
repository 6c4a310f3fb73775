"""Per-prompt advantages: A = (r - mean_c) / std_c, statistics over the last rewards of the same prompt.

Consumes a `Scored` batch, produces advantages of shape (B,); keeps the buffers, which go into the checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ddpo.config import AdvantageConfig
from ddpo.types import Scored


class Advantage:
    """Statistics as in ddpo-pytorch (Black et al. 2023, appendix D.3), fed in the order of image ids.

    1. extend the prompt's buffer with the new rewards;
    2. fewer than min_count there: mean and std of this batch, else of the buffer;
    3. A = (r - mean) / (std + 1e-6).

    Without per-prompt statistics A = (r - mean) / (std + 1e-8) over the batch. Rewards come sorted by image, so
    the result does not depend on which worker was faster. Masked images take no part and get A = 0.
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
            advantages[kept] = self._of(text, scored.rewards_B[kept])
        return advantages

    def _of(self, text: Sequence[str], rewards_K: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.config.per_prompt:
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
