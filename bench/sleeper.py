"""Workers that sleep in the place of those that draw and score: what remains is the system itself.

Consumes chunks, produces empty answers after a set time. Imports no torch, so that many fit on one machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ddpo.arrival import Arrival, arrive
from ddpo.types import Images, Policy, Prompts, Receipt, Scores


class SleepingWorker:
    """A sampler or a reward worker that takes `seconds` for a chunk."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def arrival(self) -> Arrival:
        """Which code it runs."""
        return arrive("a sleeper", "cpu")

    def sample(self, part: Prompts, policy: Policy) -> tuple[Images, Any, Receipt]:
        """A chunk without pixels."""
        time.sleep(self.seconds)
        images = Images(part.ids, part.text, part.metadata, np.zeros((len(part.ids), 1, 1, 3), np.uint8))
        zeros = np.zeros(len(part.ids))
        return images, None, Receipt(part.ids, policy.version, policy.digest, self.seconds, zeros, ())

    def score(self, images: Images) -> Scores:
        """Nought for every image."""
        time.sleep(self.seconds)
        return Scores(images.ids, dict.fromkeys(images.ids, 0.0), {}, {}, {"score": self.seconds})
