"""The power of two by which a float16 loss is multiplied before its backward pass, and its gradient divided after it.

An element of d loss / d output is about 1 / (D pairs), for Stable Diffusion and the paper's minibatch 2e-8: below
float16's smallest number, 6e-8. Without a scale every gradient is 0 and nothing says so. A power of two is exact.
Consumes how updates went, produces the scale; waits for nothing. After Micikevicius et al. 2018, "Mixed Precision
Training", section 3.2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MARGIN = 8  # binary digits below D * pairs that the scale starts with: room for what guidance and the network multiply
PATIENCE = 200  # updates without overflow, after which a scale that was lowered rises by one digit


class LossScale:
    """1, and for float16 about D * pairs / 2^margin; margin grows with every overflow. The same on all ranks, since
    they see the same summed gradient."""

    def __init__(self, dtype: str) -> None:
        self.needed = dtype == "float16"
        self.margin, self.clean = MARGIN, 0

    def of(self, dimensions: int, pairs: int) -> float:
        """For a loss that is a mean over `pairs` of a mean over the latent's `dimensions`; at least 1."""
        if not self.needed:
            return 1.0
        return 2.0 ** max(0, math.floor(math.log2(dimensions * pairs)) - self.margin)

    def overflowed(self) -> None:
        """Half of it from now on."""
        self.margin, self.clean = self.margin + 1, 0

    def went_well(self) -> None:
        """Count an update; after many of them try what had been too much."""
        self.clean += 1
        if self.margin > MARGIN and self.clean >= PATIENCE:
            self.margin, self.clean = self.margin - 1, 0

    def state(self) -> dict[str, NDArray[np.int64]]:
        """For the checkpoint, where there is a scale."""
        return {"loss_scale/state": np.array([self.margin, self.clean])} if self.needed else {}

    def restore(self, state: NDArray[np.int64] | None) -> None:
        """Go on where `state` was taken."""
        self.margin, self.clean = (int(number) for number in state) if state is not None else (MARGIN, 0)
