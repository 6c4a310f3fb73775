"""What is ascended: DDPO-IS and DDPO-SF over (image, timestep) pairs, and the figures that tell whether it is sound.

Consumes new and old log-probs and advantages, produces a loss to minimise and a `Tally`. Shape letter: P pairs.

Units. Log-probs are means over the latent's D dimensions, so rho = exp(log p - log p_old) is the D-th root of the ratio
of probabilities. DDPO clips rho. An importance weight has to be the ratio itself, rho^D: inside the clip range rho is 1
to two or four digits, and as a weight it would correct nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
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


def importance(log_prob_P: Tensor, old_log_prob_P: Tensor, dimensions: int) -> Tensor:
    """p / p_old as a ratio of probabilities, rho^D, per pair and without gradient; infinite where it overflows."""
    return torch.exp(dimensions * (log_prob_P - old_log_prob_P).detach())


def truncated(log_prob_P: Tensor, advantage_P: Tensor, weight_P: Tensor) -> Tensor:
    """Truncated importance sampling, per pair: the gradient of A log p, weighed by how likely the pair still is.

    L = -A w log p,  w = min(p / p_old, C) without gradient

    The policy gradient of IMPALA (Espeholt et al. 2018, section 4.2); truncation after Ionides 2008. It has no clip: a
    pair that became likelier keeps its gradient, with a weight of C at most; one that is not drawn any more loses it.
    """
    return -advantage_P * weight_P * log_prob_P


def decoupled(log_prob_P: Tensor, proximal_P: Tensor, advantage_P: Tensor, weight_P: Tensor, clip: float) -> Tensor:
    """PPO's clip around a proximal policy newer than the one that drew the pair, weighed for the difference, per pair.

    L = w max(-A rho, -A clip(rho, 1 - clip, 1 + clip)),  rho = p / p_prox,  w = min(p_prox / p_old, C)

    Hilton, Cobbe & Schulman 2022 ("Batch size-invariance for policy optimization"); for stale data AReaL (Fu et al.
    2025). Where p_prox = p_old it is `ddpo_is`.
    """
    return weight_P * ddpo_is(log_prob_P, proximal_P, advantage_P, clip)


def outside(log_prob_P: Tensor, centre_P: Tensor, clip: float) -> Tensor:
    """Which pairs' ratio to the centre has left 1 +- clip."""
    return ((log_prob_P.detach() - centre_P).double().exp() - 1).abs() > clip


@dataclass
class Tally:
    """Sums over all pairs of a step, in float64 on the host; `add` after every micro-batch, `merge` at its end."""

    dimensions: int
    pairs: int = 0
    loss: float = 0.0
    kl: float = 0.0
    clipped: int = 0
    ratio_min: float = float("inf")
    ratio_max: float = float("-inf")
    abs_delta: float = 0.0
    max_delta: float = 0.0
    log_weight: float = float("-inf")  # of the sum of p / p_old, which may lie beyond the largest float
    log_square: float = float("-inf")  # of the sum of its squares
    base_kl: float = 0.0
    first_delta: dict[int, list[float]] = field(default_factory=dict)
    first_cut: int = 0

    def add(
        self, loss_P: Tensor, log_prob_P: Tensor, old_log_prob_P: Tensor, base_kl_P: Tensor, cut_P: Tensor
    ) -> None:
        """Count one micro-batch. approx_kl is (rho - 1) - log rho, the low-variance estimator (Schulman 2020)."""
        delta = (log_prob_P.detach() - old_log_prob_P).double().cpu()
        ratio = delta.exp()
        nats = self.dimensions * delta
        self.merge(Tally(
            self.dimensions, pairs=len(delta), loss=float(loss_P.detach().double().sum()),
            kl=float(((ratio - 1) - delta).sum()), clipped=int(cut_P.sum()), ratio_min=float(ratio.min()),
            ratio_max=float(ratio.max()), abs_delta=float(delta.abs().sum()), max_delta=float(delta.abs().max()),
            log_weight=float(nats.logsumexp(0)), log_square=float((2 * nats).logsumexp(0)),
            base_kl=float(base_kl_P.detach().double().sum()),
        ))

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
        for name in ("pairs", "loss", "kl", "clipped", "abs_delta", "base_kl", "first_cut"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ratio_min = min(self.ratio_min, other.ratio_min)
        self.ratio_max = max(self.ratio_max, other.ratio_max)
        self.max_delta = max(self.max_delta, other.max_delta)
        self.log_weight = float(np.logaddexp(self.log_weight, other.log_weight))
        self.log_square = float(np.logaddexp(self.log_square, other.log_square))
        for timestep, deltas in other.first_delta.items():
            self.first_delta.setdefault(timestep, []).extend(deltas)

    def add_first(self, timesteps: list[int], delta_P: Tensor, clip: float) -> None:
        """Note |delta log-prob| by timestep for the first minibatch, where no update has been made yet, and how many
        of its pairs' ratios are outside 1 +- clip all the same."""
        self.first_cut += int(outside(delta_P, torch.zeros_like(delta_P), clip).sum())
        for timestep, delta in zip(timesteps, delta_P.abs().tolist(), strict=True):
            self.first_delta.setdefault(timestep, []).append(delta)

    @property
    def effective_share(self) -> float:
        """Effective sample size (sum w)^2 / sum w^2 as a share of the pairs (Kish 1965), w = p / p_old, not truncated.

        Of a pair whose two Gaussians lie |mean - mean'| / std = d apart, it expects exp(-d^2).
        """
        return math.exp(2 * self.log_weight - self.log_square) / self.pairs

    @property
    def first_cut_share(self) -> float:
        """Share of the first minibatch's pairs outside the clip range before any update; NaN where it has none."""
        pairs = sum(len(deltas) for deltas in self.first_delta.values())
        return self.first_cut / pairs if pairs else math.nan

    def delta_by_timestep(self) -> dict[int, float]:
        """Mean |delta log-prob| at each trained timestep, noisiest first."""
        return {t: sum(deltas) / len(deltas) for t, deltas in sorted(self.first_delta.items(), reverse=True)}
