"""What is ascended: DDPO-IS and DDPO-SF over (image, timestep) pairs, and the figures that tell whether it is sound.

Consumes new and old log-probs and advantages, produces a loss to minimise and a `Tally`. Shape letter: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def ddpo_is(log_prob_P: Tensor, old_log_prob_P: Tensor, advantage_P: Tensor, clip: float) -> Tensor:
    """Clipped importance sampling, per pair (Black et al. 2023, section 4.3; PPO, Schulman et al. 2017, equation 7).

    L = max(-A rho, -A clip(rho, 1 - clip, 1 + clip)),  rho = p / p_old
    """
    ratio = torch.exp(log_prob_P - old_log_prob_P)
    return torch.maximum(-advantage_P * ratio, -advantage_P * ratio.clamp(1 - clip, 1 + clip))


def ddpo_sf(log_prob_P: Tensor, old_log_prob_P: Tensor, advantage_P: Tensor, clip: float) -> Tensor:
    """Score function (REINFORCE), per pair: L = -A log p; right only while p = p_old, that is for one update."""
    return -advantage_P * log_prob_P


OBJECTIVES = {"ddpo-is": ddpo_is, "ddpo-sf": ddpo_sf}


@dataclass
class Tally:
    """Sums over all pairs of a step, in float64 on the host; `add` after every micro-batch."""

    clip: float
    pairs: int = 0
    loss: float = 0.0
    kl: float = 0.0
    clipped: int = 0
    ratio_min: float = float("inf")
    ratio_max: float = float("-inf")
    max_delta: float = 0.0
    base_kl: float = 0.0
    first_delta: dict[int, list[float]] = field(default_factory=dict)

    def add(self, loss_P: Tensor, log_prob_P: Tensor, old_log_prob_P: Tensor, base_kl_P: Tensor) -> None:
        """Count one micro-batch. approx_kl is (rho - 1) - log rho, the low-variance estimator (Schulman 2020)."""
        delta = (log_prob_P.detach() - old_log_prob_P).double().cpu()
        ratio = delta.exp()
        self.pairs += len(delta)
        self.loss += float(loss_P.detach().double().sum())
        self.kl += float(((ratio - 1) - delta).sum())
        self.base_kl += float(base_kl_P.detach().double().sum())
        self.clipped += int(((ratio - 1).abs() > self.clip).sum())
        self.ratio_min = min(self.ratio_min, float(ratio.min()))
        self.ratio_max = max(self.ratio_max, float(ratio.max()))
        self.max_delta = max(self.max_delta, float(delta.abs().max()))

    def add_first(self, timesteps: list[int], delta_P: Tensor) -> None:
        """Note |delta log-prob| by timestep for the first minibatch, where no update has been made yet."""
        for timestep, delta in zip(timesteps, delta_P.abs().tolist(), strict=True):
            self.first_delta.setdefault(timestep, []).append(delta)

    def delta_by_timestep(self) -> dict[int, float]:
        """Mean |delta log-prob| at each trained timestep, noisiest first."""
        return {t: sum(deltas) / len(deltas) for t, deltas in sorted(self.first_delta.items(), reverse=True)}
