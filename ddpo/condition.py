"""c as the UNet takes it: what the text encoders make of prompts.

Consumes and produces tensors. Shape letters: B rows, L text tokens, D text width, P width of the pooled text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """One row a prompt: its tokens, and for SDXL the embedding of the whole text (P = 0 for SD 1 and 2)."""

    text_BLD: Tensor
    pooled_BP: Tensor

    def rows(self, index_B: Tensor) -> Condition:
        """The rows of these indices, in their order."""
        return Condition(self.text_BLD[index_B], self.pooled_BP[index_B])

    def expand(self, count: int) -> Condition:
        """A single row, `count` times, without a copy."""
        return Condition(self.text_BLD.expand(count, -1, -1), self.pooled_BP.expand(count, -1))

    def then(self, other: Condition) -> Condition:
        """These rows and then those of another."""
        return Condition(torch.cat([self.text_BLD, other.text_BLD]), torch.cat([self.pooled_BP, other.pooled_BP]))

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        return Condition(self.text_BLD.to(device), self.pooled_BP.to(device))
