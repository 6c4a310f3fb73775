"""Trained weights on disk, loaded by plain diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from ddpo.base import find
from ddpo.denoiser import Denoiser
from learner import lora

pytestmark = pytest.mark.numbers
ATTENTION = '["to_q", "to_k", "to_v", "to_out.0"]'
CONVOLUTIONS = '["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]'


def moved(run, base) -> Denoiser:
    denoiser = Denoiser(base, run.policy, 0)
    rng = np.random.default_rng(0)
    drift = {name: array + 0.1 * rng.normal(size=array.shape) for name, array in denoiser.weights().items()}
    denoiser.load_weights({name: array.astype(np.float32) for name, array in drift.items()})
    return denoiser


def predicted(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 24, 16, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor([3, 500]), text).sample


@pytest.mark.parametrize("targets", [ATTENTION, CONVOLUTIONS])
@pytest.mark.parametrize("alpha", [4, 16])
def test_load_lora_weights_gives_the_same_unet(make_run, model, tmp_path, targets, alpha):
    run = make_run(f"policy.lora_targets={targets}", f"policy.lora_alpha={alpha}")
    base = find(run.policy.base)
    ours = moved(run, base)
    lora.save(ours.weights(), run.policy, base, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    untrained = predicted(pipe.unet)
    pipe.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(predicted(pipe.unet), predicted(ours.unet))
    assert not torch.allclose(untrained, predicted(pipe.unet), atol=1e-3)


def test_a_fully_trained_unet_loads_as_a_folder(make_run, tmp_path):
    run = make_run("policy.train=full")
    base = find(run.policy.base)
    ours = moved(run, base)
    lora.save(ours.weights(), run.policy, base, tmp_path)
    theirs = UNet2DConditionModel.from_pretrained(tmp_path, subfolder=lora.UNET_FOLDER)
    assert torch.equal(predicted(theirs), predicted(ours.unet))
