"""The loss of a micro-batch of (image, timestep) pairs: DDPO's, or reward-weighted regression's.

Consumes a `Batch` and pairs, produces `Terms`; waits for nothing.
Shape letters as in learner.learner: B images, S = T + 1 states, N those that are held, C H W latent, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpo.condition import Condition
from ddpo.config import LearnerConfig
from ddpo.denoiser import Denoiser
from ddpo.objective import OBJECTIVES, decoupled, importance, outside, truncated


@dataclass(frozen=True)
class Batch:
    """All trajectories of a step side by side, in the host's memory; micro-batches go to the device.

    row_BS:   where in states_NCHW an image's states are; N, beyond the end, for those that are not held
    c, null:  the images' prompts, and the empty prompt in one row
    factor_B: what the loss of an image is multiplied by, its advantage or RWR's weight
    proximal_BT, alpha: log-probs that the ratio is clipped around: alpha of the way from proximal_BT to the policy as
                        it is now (learner.proximal); log_probs_BT and 0 unless learner.correction is "decoupled"
    """

    states_NCHW: Tensor
    row_BS: Tensor
    log_probs_BT: Tensor
    c: Condition
    null: Condition
    factor_B: Tensor
    proximal_BT: Tensor
    alpha: float = 0.0

    @property
    def dimensions(self) -> int:
        """D, the latent's."""
        return self.states_NCHW.shape[1:].numel()

    def before(self, pairs_P2: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Condition, Condition]:
        """x_t, step index, prompt and empty prompt of every pair: what a Denoiser's step is asked."""
        image_P, index_P = pairs_P2.unbind(1)
        x_PCHW = self.state(image_P, index_P).to(device)
        return x_PCHW, index_P.to(device), *self.conditions(image_P, device)

    def after(self, pairs_P2: Tensor, device: torch.device) -> Tensor:
        """x_{t-1} as it was drawn."""
        image_P, index_P = pairs_P2.unbind(1)
        return self.state(image_P, index_P + 1).to(device)

    def state(self, image_P: Tensor, place_P: Tensor | int) -> Tensor:
        """The images' states at these places of their chains, on the host; raises IndexError where one is not held."""
        return self.states_NCHW[self.row_BS[image_P, place_P]]

    def conditions(self, image_P: Tensor, device: torch.device) -> tuple[Condition, Condition]:
        """The prompt of every pair, and as many empty ones, on the device."""
        return self.c.rows(image_P).to(device), self.null.to(device).expand(len(image_P))


def micro_batches(pairs_P2: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    """A minibatch's pairs in the parts that pass through the network together."""
    return (torch.tensor(pairs_P2[start : start + size]) for start in range(0, len(pairs_P2), size))


@dataclass(frozen=True)
class Terms:
    """Losses to minimise, new and old log-probs (equal where there is no ratio), KL to the base (NaN if not asked).

    cut_P: whose ratio left its bounds, 1 +- clip around the proximal policy or, truncated, C
    """

    loss_P: Tensor
    log_prob_P: Tensor
    old_log_prob_P: Tensor
    base_kl_P: Tensor
    cut_P: Tensor


def policy_gradient(denoiser: Denoiser, options: LearnerConfig, batch: Batch, pairs_P2: Tensor) -> Terms:
    """DDPO's objective plus kl times KL(p_theta || p_base), at steps of the images' own chains; pairs (image, step)."""
    device, (image_P, index_P) = denoiser.device, pairs_P2.unbind(1)
    given = batch.before(pairs_P2, device)
    gaussian = denoiser.step(*given)
    log_prob_P = gaussian.log_prob(batch.after(pairs_P2, device))
    old_P, start_P = (table_BT[image_P, index_P].to(device) for table_BT in (batch.log_probs_BT, batch.proximal_BT))
    proximal_P = torch.lerp(start_P, log_prob_P.detach(), batch.alpha)
    factor_P = batch.factor_B[image_P].to(device)
    loss_P, cut_P = _objective(options, log_prob_P, proximal_P, old_P, factor_P, batch.dimensions)
    base_kl_P = torch.full_like(loss_P, torch.nan)
    if options.kl:
        base_kl_P = gaussian.kl(denoiser.base_step(*given))
        loss_P = loss_P + options.kl * base_kl_P
    return Terms(loss_P, log_prob_P, old_P, base_kl_P, cut_P)


def _objective(
    options: LearnerConfig, log_prob_P: Tensor, proximal_P: Tensor, old_P: Tensor, advantage_P: Tensor, dimensions: int
) -> tuple[Tensor, Tensor]:
    """The loss by learner.correction, and which pairs it cut."""
    if options.correction == "truncate":
        ratio_P = importance(log_prob_P, old_P, dimensions)
        return truncated(log_prob_P, advantage_P, ratio_P.clamp(max=options.truncation)), ratio_P > options.truncation
    cut_P = outside(log_prob_P, proximal_P, options.clip)
    if options.correction == "decoupled":
        weight_P = importance(proximal_P, old_P, dimensions).clamp(max=options.truncation)
        return decoupled(log_prob_P, proximal_P, advantage_P, weight_P, options.clip), cut_P
    return OBJECTIVES[options.algorithm](log_prob_P, old_P, advantage_P, options.clip), cut_P


def regression(denoiser: Denoiser, batch: Batch, pairs_P2: Tensor, seed: int) -> Terms:
    """w |eps - eps_theta(x_t)|^2 with fresh noise (Black et al. 2023, equation 4); pairs (image, training timestep)."""
    device, (image_P, timestep_P) = denoiser.device, pairs_P2.unbind(1)
    x0_PCHW = batch.state(image_P, -1)
    noise_PCHW = torch.randn(x0_PCHW.shape, generator=torch.Generator().manual_seed(seed))
    error_P = denoiser.denoising_loss(
        x0_PCHW.to(device), timestep_P.to(device), noise_PCHW.to(device), *batch.conditions(image_P, device)
    )
    none = torch.zeros_like(error_P)
    return Terms(batch.factor_B[image_P].to(device) * error_P, none, none, none + torch.nan, none.bool())
