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
from ddpo.device import on_gpu
from ddpo.objective import OBJECTIVES, decoupled, importance, outside, truncated


@dataclass(frozen=True)
class Batch:
    """All trajectories of a step side by side. States stay in the host's memory, several GB for large models, and go to
    the device by micro-batches, without waiting; all else is on the device from the start.

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

    def before(self, pairs: Pairs) -> tuple[Tensor, Tensor, Condition, Condition]:
        """x_t, step index, prompt and empty prompt of every pair: what a Denoiser's step is asked."""
        return self.state(pairs.image_P, pairs.index_P), pairs.index_there_P, *self.conditions(pairs)

    def after(self, pairs: Pairs) -> Tensor:
        """x_{t-1} as it was drawn."""
        return self.state(pairs.image_P, pairs.index_P + 1)

    def state(self, image_P: Tensor, place_P: Tensor | int) -> Tensor:
        """The images' states at these places of their chains, on the device; raises IndexError where one is not
        held."""
        return uploaded(self.states_NCHW[self.row_BS[image_P, place_P]], self.factor_B.device)

    def conditions(self, pairs: Pairs) -> tuple[Condition, Condition]:
        """The prompt of every pair, and as many empty ones."""
        return self.c.rows(pairs.image_there_P), self.null.expand(len(pairs))


@dataclass(frozen=True)
class Pairs:
    """Of P pairs, image and step of its chain (for RWR: training timestep), on the host and on the device."""

    image_P: Tensor
    index_P: Tensor
    image_there_P: Tensor
    index_there_P: Tensor

    def __len__(self) -> int:
        return len(self.image_P)

    @classmethod
    def on(cls, device: torch.device, pairs_P2: Tensor) -> Pairs:
        """From a table on the host."""
        return cls(*pairs_P2.unbind(1), *uploaded(pairs_P2, device).unbind(1))


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. From pinned memory the host need not wait for it, so the GPU never runs out of work."""
    if on_gpu(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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

    def figures(self) -> Tensor:
        """All of them without gradient, a row each, (5, P), where they were computed."""
        rows = (self.loss_P, self.log_prob_P, self.old_log_prob_P, self.base_kl_P, self.cut_P)
        return torch.stack([row.detach().float() for row in rows])


def policy_gradient(denoiser: Denoiser, options: LearnerConfig, batch: Batch, pairs_P2: Tensor) -> Terms:
    """DDPO's objective plus kl times KL(p_theta || p_base), at steps of the images' own chains; pairs (image, step)."""
    pairs = Pairs.on(denoiser.device, pairs_P2)
    place = pairs.image_there_P, pairs.index_there_P
    given = batch.before(pairs)
    gaussian = denoiser.step(*given)
    log_prob_P = gaussian.log_prob(batch.after(pairs))
    old_P, start_P = batch.log_probs_BT[place], batch.proximal_BT[place]
    proximal_P = torch.lerp(start_P, log_prob_P.detach(), batch.alpha)
    factor_P = batch.factor_B[pairs.image_there_P]
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
    pairs = Pairs.on(denoiser.device, pairs_P2)
    x0_PCHW = batch.state(pairs.image_P, -1)
    noise_PCHW = torch.randn(x0_PCHW.shape, generator=torch.Generator().manual_seed(seed))
    error_P = denoiser.denoising_loss(
        x0_PCHW, pairs.index_there_P, uploaded(noise_PCHW, denoiser.device), *batch.conditions(pairs)
    )
    none = torch.zeros_like(error_P)
    return Terms(batch.factor_B[pairs.image_there_P] * error_P, none, none, none + torch.nan, none.bool())
