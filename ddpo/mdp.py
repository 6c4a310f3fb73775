"""Denoising as a Markov decision process: one DDIM step with noise is a Gaussian policy.

Consumes the UNet's output, produces `Gaussian(mean, std)`; the sampler draws from it, the learner asks for the
log-prob of what was drawn. The formula exists here and nowhere else.

Paper letters (Song et al. 2021, "DDIM"; Black et al. 2023, section 4.1): abar_t is the cumulative alpha, sigma_t the
step's standard deviation, x_t the latent. Shape letters: B rows, C H W latent, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ddpo.errors import InputError


class Gaussian(NamedTuple):
    """p(x_{t-1} | x_t, c) = N(mean_BCHW, std_B^2), isotropic, fp32."""

    mean_BCHW: Tensor
    std_B: Tensor

    def sample(self, noise_BCHW: Tensor) -> Tensor:
        """x_{t-1} = mean + std * noise."""
        return self.mean_BCHW + self.std_B[:, None, None, None] * noise_BCHW

    def log_prob(self, x_BCHW: Tensor) -> Tensor:
        """log p(x), mean over the latent's dimensions (not their sum), as in ddpo-pytorch and TRL; shape (B,)."""
        std = self.std_B[:, None, None, None]
        log_prob = -((x_BCHW.detach() - self.mean_BCHW) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return log_prob.mean(dim=(1, 2, 3))

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) for equal standard deviations, |mean - mean'|^2 / (2 std^2), mean over dimensions; (B,)."""
        difference = self.mean_BCHW - other.mean_BCHW
        return (difference**2 / (2 * self.std_B[:, None, None, None] ** 2)).mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Schedule:
    """The T steps that are taken, high noise first; all tensors of shape (T,), fp32 but for the timesteps.

    stochastic_T: indices of the steps with sigma > 0: only these have a log-prob, so only these are trained. In the
                  host's memory, wherever the tensors are: to read them from a GPU is to wait for it
    """

    timesteps_T: Tensor
    alpha_T: Tensor
    alpha_prev_T: Tensor
    sigma_T: Tensor
    prediction: str
    stochastic_T: list[int]

    def to(self, device: torch.device) -> Schedule:
        """The same schedule with its tensors on a device."""
        return replace(
            self, timesteps_T=self.timesteps_T.to(device), alpha_T=self.alpha_T.to(device),
            alpha_prev_T=self.alpha_prev_T.to(device), sigma_T=self.sigma_T.to(device),
        )


def schedule(config: Mapping[str, Any], steps: int, eta: float) -> Schedule:
    """Take `steps` DDIM steps with noise `eta` under a diffusers scheduler config.

    sigma_t^2 = eta^2 (1 - abar_prev) / (1 - abar_t) (1 - abar_t / abar_prev)    (DDIM, equation 16)

    Raises InputError where eta is 0, or where no step has noise: a deterministic step has no probability; and where
    the steps are not the model's.
    """
    if eta <= 0:
        raise InputError("policy.eta is 0: every step has sigma = 0, hence no log-prob to learn from. Write eta = 1.")
    ddim: Any = DDIMScheduler.from_config({**config, "clip_sample": False, "thresholding": False})
    ddim.set_timesteps(steps)
    timesteps, abar = torch.as_tensor(ddim.timesteps), ddim.alphas_cumprod
    _check_timesteps(timesteps, steps, ddim.config)
    previous = timesteps - ddim.config["num_train_timesteps"] // steps
    alpha = abar[timesteps]
    if ddim.config["prediction_type"] == "epsilon" and bool((alpha == 0).any()):
        raise InputError(
            f"policy.base: its schedule begins at pure noise (abar = 0 at timestep {int(timesteps[0])}), where epsilon "
            "says nothing of x_0, so that the step would divide by 0. A model with rescale_betas_zero_snr has to "
            "predict v: set prediction_type or rescale_betas_zero_snr in its scheduler_config.json to what it was "
            "trained with."
        )
    alpha_prev = torch.where(previous >= 0, abar[previous.clamp(min=0)], ddim.final_alpha_cumprod)
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    sigma = eta * variance.clamp(min=0).sqrt()
    stochastic = torch.nonzero(sigma > 0).flatten().tolist()
    if not stochastic:
        raise InputError(f"none of the {steps} steps of this schedule has noise (sigma = 0); it cannot be trained.")
    return Schedule(timesteps, alpha, alpha_prev, sigma, ddim.config["prediction_type"], stochastic)


def _check_timesteps(timesteps_T: Tensor, steps: int, config: Mapping[str, Any]) -> None:
    """For some numbers of steps diffusers rounds itself out of the training schedule."""
    known = config["num_train_timesteps"]
    if len(timesteps_T) != steps or not 0 <= int(timesteps_T.min()) <= int(timesteps_T.max()) < known:
        raise InputError(
            f"policy.steps = {steps}: under this model's schedule (timestep_spacing \"{config['timestep_spacing']}\") "
            f"that is {len(timesteps_T)} timesteps from {int(timesteps_T[0])} to {int(timesteps_T[-1])}, and the model "
            f"knows 0 to {known - 1} only. Write policy.steps = {steps - 1}."
        )


def denoise(plan: Schedule, output_BCHW: Tensor, x_BCHW: Tensor, index_B: Tensor) -> Gaussian:
    """One step of the policy, each row at a timestep of its own.

    x0   = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    mean = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma_t^2) eps              (DDIM, equation 12)

    output_BCHW: what the UNet says, eps or v (Salimans & Ho 2022); index_B: position of each row in the schedule,
    0 is the noisiest step. Computed in fp32 whatever the UNet's precision.
    """
    output_BCHW, x_BCHW = output_BCHW.float(), x_BCHW.float()
    alpha, alpha_prev, sigma = (
        tensor[index_B][:, None, None, None] for tensor in (plan.alpha_T, plan.alpha_prev_T, plan.sigma_T)
    )
    if plan.prediction == "v_prediction":
        x0 = alpha.sqrt() * x_BCHW - (1 - alpha).sqrt() * output_BCHW
        noise = alpha.sqrt() * output_BCHW + (1 - alpha).sqrt() * x_BCHW
    else:
        x0 = (x_BCHW - (1 - alpha).sqrt() * output_BCHW) / alpha.sqrt()
        noise = output_BCHW
    mean = alpha_prev.sqrt() * x0 + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * noise
    return Gaussian(mean, plan.sigma_T[index_B])


def training_abar(config: Mapping[str, Any]) -> Tensor:
    """abar of every training timestep (1,000 for Stable Diffusion), fp32."""
    ddim: Any = DDIMScheduler.from_config(dict(config))
    return ddim.alphas_cumprod.float()


def noised(abar_B: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, and what the UNet is to say of it: eps, or v (Ho et al. 2020)."""
    signal, spread = (part.sqrt()[:, None, None, None] for part in (abar_B, 1 - abar_B))
    x_BCHW = signal * x0_BCHW + spread * noise_BCHW
    return x_BCHW, noise_BCHW if prediction == "epsilon" else signal * noise_BCHW - spread * x0_BCHW


def guide(null_BCHW: Tensor, text_BCHW: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance, eps = eps_null + w (eps_text - eps_null)    (Ho & Salimans 2021)."""
    return null_BCHW + weight * (text_BCHW - null_BCHW)
