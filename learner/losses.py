"""The loss of a micro-batch of (image, timestep) pairs: DDPO's, or reward-weighted regression's.

Consumes a `Batch` and pairs, produces `Terms`; waits for nothing.
Shape letters as in learner.learner: B images, S = T + 1 states, C H W latent, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpo.condition import Condition
from ddpo.config import LearnerConfig
from ddpo.denoiser import Denoiser
from ddpo.objective import OBJECTIVES


@dataclass(frozen=True)
class Batch:
    """All trajectories of a step side by side, in the host's memory; micro-batches go to the device.

    c, null:  the images' prompts, and the empty prompt in one row
    factor_B: what the loss of an image is multiplied by, its advantage or RWR's weight
    """

    states_BSCHW: Tensor
    log_probs_BT: Tensor
    c: Condition
    null: Condition
    factor_B: Tensor

    def conditions(self, image_P: Tensor, device: torch.device) -> tuple[Condition, Condition]:
        """The prompt of every pair, and as many empty ones, on the device."""
        return self.c.rows(image_P).to(device), self.null.to(device).expand(len(image_P))


@dataclass(frozen=True)
class Terms:
    """Losses to minimise, new and old log-probs (equal where there is no ratio), KL to the base (NaN if not asked)."""

    loss_P: Tensor
    log_prob_P: Tensor
    old_log_prob_P: Tensor
    base_kl_P: Tensor


def policy_gradient(denoiser: Denoiser, options: LearnerConfig, batch: Batch, pairs_P2: Tensor) -> Terms:
    """DDPO's objective plus kl times KL(p_theta || p_base), at steps of the images' own chains; pairs (image, step)."""
    device, (image_P, index_P) = denoiser.device, pairs_P2.unbind(1)
    x_PCHW = batch.states_BSCHW[image_P, index_P].to(device)
    given = x_PCHW, index_P.to(device), *batch.conditions(image_P, device)
    gaussian = denoiser.step(*given)
    log_prob_P = gaussian.log_prob(batch.states_BSCHW[image_P, index_P + 1].to(device))
    old_P, factor_P = batch.log_probs_BT[image_P, index_P].to(device), batch.factor_B[image_P].to(device)
    loss_P = OBJECTIVES[options.algorithm](log_prob_P, old_P, factor_P, options.clip)
    base_kl_P = torch.full_like(loss_P, torch.nan)
    if options.kl:
        base_kl_P = gaussian.kl(denoiser.base_step(*given))
        loss_P = loss_P + options.kl * base_kl_P
    return Terms(loss_P, log_prob_P, old_P, base_kl_P)


def regression(denoiser: Denoiser, batch: Batch, pairs_P2: Tensor, seed: int) -> Terms:
    """w |eps - eps_theta(x_t)|^2 with fresh noise (Black et al. 2023, equation 4); pairs (image, training timestep)."""
    device, (image_P, timestep_P) = denoiser.device, pairs_P2.unbind(1)
    x0_PCHW = batch.states_BSCHW[image_P, -1]
    noise_PCHW = torch.randn(x0_PCHW.shape, generator=torch.Generator().manual_seed(seed))
    error_P = denoiser.denoising_loss(
        x0_PCHW.to(device), timestep_P.to(device), noise_PCHW.to(device), *batch.conditions(image_P, device)
    )
    none = torch.zeros_like(error_P)
    return Terms(batch.factor_B[image_P].to(device) * error_P, none, none, none + torch.nan)
