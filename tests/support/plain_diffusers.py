"""The sampler's noise under diffusers' own pipeline and step: what our chain must come out like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray

from ddpo.base import BaseModel
from ddpo.config import PolicyConfig


def pipeline(base: BaseModel, lora: Path | None = None) -> Any:
    """The class that model_index.json names, with DDIM."""
    pipe: Any = getattr(diffusers, base.pipeline).from_pretrained(base.folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(str(lora))
    return pipe


def draw(pipe: Any, base: BaseModel, policy: PolicyConfig, prompt: str, seed: int) -> NDArray[np.float64]:
    """One image (1, Y, X, 3), 0 to 255, from x_T and step noise as the sampler draws them for this seed."""
    noise = iter(torch.randn((policy.steps + 1, *base.latent_CHW), generator=torch.Generator().manual_seed(seed)))
    step, start = pipe.scheduler.step, next(noise)[None]
    pipe.scheduler.step = lambda output, t, x, **_: step(
        output, t, x, eta=policy.eta, variance_noise=next(noise)[None], return_dict=False
    )
    options = {"num_inference_steps": policy.steps, "guidance_scale": policy.guidance, "eta": policy.eta}
    return (pipe(prompt, latents=start, output_type="np", **options).images * 255).round()
