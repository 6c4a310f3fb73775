"""Base against tuned, image by image from the same noise: the mean difference and how sure it is.

Consumes scores, produces `Difference`s; waits for nothing. No torch.

The prompts are the sample: the interval says what to expect of other prompts of the kind, so whole prompts are drawn
with replacement, each with all its images. (Drawing images anew within each prompt as well would count their spread
twice, since a prompt's mean has it already.) Where there is one prompt, its images are drawn.

Shape letters: B images, P prompts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """What training did to one reward.

    base, tuned, change: means over prompts of each prompt's mean; change = tuned - base
    low, high:           95 % interval of the change; None where one pair alone was scored
    improved:            share of pairs whose tuned image scores higher
    pairs, left_out:     pairs that count, and those of which an image has no score
    """

    base: float
    tuned: float
    change: float
    low: float | None
    high: float | None
    improved: float
    pairs: int
    left_out: int

    @property
    def verdict(self) -> int:
        """1 rose, -1 fell, 0 where the interval holds zero or is not known."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def difference(
    base_B: NDArray[np.float64], tuned_B: NDArray[np.float64], prompts: Sequence[str], seed: int
) -> Difference | None:
    """Compare the scores of the same prompts and noise, NaN where missing; None where no pair has both."""
    known_B = ~(np.isnan(base_B) | np.isnan(tuned_B))
    if not known_B.any():
        return None
    _, cluster_B = np.unique(np.array(prompts)[known_B], return_inverse=True)
    base, tuned = base_B[known_B], tuned_B[known_B]
    change_P = _cluster_means(tuned - base, cluster_B)
    low, high = interval(change_P if len(change_P) > 1 else tuned - base, seed)
    before, after = (float(_cluster_means(values, cluster_B).mean()) for values in (base, tuned))
    improved, left_out = float((tuned > base).mean()), len(base_B) - len(base)
    return Difference(before, after, float(change_P.mean()), low, high, improved, len(base), left_out)


def _cluster_means(values_B: NDArray[np.float64], cluster_B: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(cluster_B, values_B) / np.bincount(cluster_B)


def interval(values_P: NDArray[np.float64], seed: int) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean by the expanded percentile bootstrap (Hesterberg 2015, section 5.3)."""
    count = len(values_P)
    if count < 2:
        return None, None
    drawn_RP = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    tail = _tail(count)
    low, high = np.quantile(values_P[drawn_RP].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _tail(count: int) -> float:
    """The quantile at which `count` resampled values give an interval as wide as Student's: plain percentiles are too
    narrow by sqrt((n - 1) / n) and by normal against t. Student's quantile is from its expansion in 1 / (n - 1)."""
    z, free = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), count - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return NormalDist().cdf(-t * math.sqrt(count / free))
