"""The denoising step against diffusers' own, and against values of another implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from ddpo.errors import InputError
from ddpo.mdp import Gaussian, denoise, guide, noised, schedule, training_abar

pytestmark = pytest.mark.numbers
GOLDEN = np.load(Path(__file__).parent.parent / "data" / "ddim_20.npz")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def config(**changes: object) -> dict:
    return {**SD, "num_train_timesteps": 1000, "set_alpha_to_one": False, "prediction_type": "epsilon", **changes}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_every_step_is_diffusers_step(prediction, set_alpha_to_one, eta):
    facts = config(prediction_type=prediction, set_alpha_to_one=set_alpha_to_one)
    plan, theirs = schedule(facts, 50, eta), DDIMScheduler.from_config({**facts, "clip_sample": False})
    theirs.set_timesteps(50)
    assert plan.timesteps_T.tolist() == theirs.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    for index, timestep in enumerate(theirs.timesteps):
        x, output, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
        expected = theirs.step(output, timestep, x, eta=eta, variance_noise=noise).prev_sample
        gaussian = denoise(plan, output, x, torch.full((2,), index))
        torch.testing.assert_close(gaussian.sample(noise), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", True)])
@pytest.mark.parametrize("steps", [20, 30])  # 30 does not divide 1,000
def test_every_spacing_is_diffusers_spacing(spacing, prediction, zero_snr, steps):
    facts = config(prediction_type=prediction, timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr)
    plan, theirs = schedule(facts, steps, 1.0), DDIMScheduler.from_config({**facts, "clip_sample": False})
    theirs.set_timesteps(steps)
    assert plan.timesteps_T.tolist() == theirs.timesteps.tolist()
    for index, timestep in enumerate(theirs.timesteps):
        x, output, noise = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(index))
        expected = theirs.step(output, timestep, x, eta=1.0, variance_noise=noise).prev_sample
        if not torch.isfinite(expected).all():  # diffusers takes the root of 1 - abar_prev - sigma^2 = -6e-8
            assert index == 0 and theirs.alphas_cumprod[timestep] == 0
            expected = plan.alpha_prev_T[0].sqrt() * -output + plan.sigma_T[0] * noise
        gaussian = denoise(plan, output, x, torch.tensor([index]))
        torch.testing.assert_close(gaussian.sample(noise), expected, rtol=1e-5, atol=1e-6)
    assert zero_snr == (float(theirs.alphas_cumprod[-1]) == 0.0)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_epsilon_at_pure_noise_is_refused_and_where_it_is_not_visited_it_is_not(spacing):
    facts = config(rescale_betas_zero_snr=True)
    assert torch.isfinite(schedule(facts, 20, 1.0).sigma_T).all()
    with pytest.raises(InputError, match=r"abar = 0 at timestep 999.*has to predict v"):
        schedule(facts | {"timestep_spacing": spacing}, 20, 1.0)


@pytest.mark.parametrize(("spacing", "steps", "said"), [
    ("trailing", 61, "is 62 timesteps from 999 to -1"), ("leading", 1000, "is 1000 timesteps from 1000 to 1"),
])
def test_steps_that_leave_the_training_schedule_are_refused(spacing, steps, said):
    with pytest.raises(InputError, match=said):
        schedule(config(timestep_spacing=spacing), steps, 1.0)
    schedule(config(timestep_spacing=spacing), steps - 1, 1.0)


@pytest.mark.parametrize("row", ["f32", "f64full"])
def test_mean_std_and_log_prob_are_the_golden_ones(row):
    plan = schedule(config(), 20, 1.0)
    assert plan.timesteps_T.tolist() == GOLDEN["f32_20_timesteps"].tolist()
    np.testing.assert_allclose(plan.sigma_T, GOLDEN[f"{row}_20_std"], rtol=1e-5)
    for index in range(20):
        eps, x, noise, given = (
            torch.tensor(GOLDEN[f"in_20_{name}"][index]) for name in ("eps", "x_t", "noise", "given_prev")
        )
        gaussian = denoise(plan, eps, x, torch.full((4,), index))
        drawn = gaussian.sample(noise)
        np.testing.assert_allclose(gaussian.mean_BCHW, GOLDEN[f"{row}_20_mean"][index], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(drawn, GOLDEN[f"{row}_20_prev_sample"][index], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gaussian.log_prob(drawn), GOLDEN[f"{row}_20_log_prob"][index], atol=1e-5)
        np.testing.assert_allclose(
            gaussian.log_prob(given), GOLDEN[f"{row}_20_log_prob_given"][index], rtol=1e-5, atol=2e-5
        )


def test_rows_may_have_timesteps_of_their_own():
    plan = schedule(config(), 20, 1.0)
    index, row = GOLDEN["mixed_f32_20_index"], GOLDEN["mixed_f32_20_row"]
    eps, x, given = (torch.tensor(GOLDEN[f"in_20_{name}"][index, row]) for name in ("eps", "x_t", "given_prev"))
    log_prob = denoise(plan, eps, x, torch.tensor(index)).log_prob(given)
    np.testing.assert_allclose(log_prob, GOLDEN["mixed_f32_20_log_prob"], atol=1e-5)


def test_log_prob_is_a_gaussians_mean_over_dimensions():
    plan = schedule(config(), 20, 1.0)
    output, x, other = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    gaussian = denoise(plan, output, x, torch.tensor([3, 15]))
    normal = torch.distributions.Normal(gaussian.mean_BCHW, gaussian.std_B[:, None, None, None].expand_as(x))
    torch.testing.assert_close(gaussian.log_prob(other), normal.log_prob(other).mean((1, 2, 3)))


def test_log_prob_sends_no_gradient_into_what_was_drawn():
    plan = schedule(config(), 20, 1.0)
    output = torch.randn(1, 4, 8, 8, requires_grad=True)
    gaussian = denoise(plan, output, torch.randn(1, 4, 8, 8), torch.tensor([4]))
    (gradient,) = torch.autograd.grad(gaussian.log_prob(gaussian.sample(torch.randn(1, 4, 8, 8))).sum(), output)
    assert gradient.abs().sum() > 0  # it would be zero if x_{t-1} = mean + std * noise were not held fixed


def test_half_precision_output_is_computed_in_fp32():
    plan = schedule(config(), 20, 1.0)
    output = torch.randn(1, 4, 8, 8).half()
    gaussian = denoise(plan, output, torch.randn(1, 4, 8, 8), torch.tensor([19]))
    assert gaussian.mean_BCHW.dtype == gaussian.log_prob(gaussian.mean_BCHW).dtype == torch.float32


def test_eta_zero_is_refused():
    with pytest.raises(InputError, match="eta is 0"):
        schedule(config(), 20, 0.0)


def test_a_last_step_without_noise_is_not_trained():
    assert schedule(config(set_alpha_to_one=False), 20, 1.0).stochastic_T == list(range(20))
    assert schedule(config(set_alpha_to_one=True), 20, 1.0).stochastic_T == list(range(19))


def test_steps_offset_zero_gives_no_nan():
    plan = schedule(config(steps_offset=0), 20, 1.0)
    assert torch.isfinite(plan.sigma_T).all()
    assert all(plan.sigma_T[index] > 0 for index in plan.stochastic_T)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_is_diffusers_noising(prediction):
    theirs, abar = DDIMScheduler.from_config(config()), training_abar(config())
    x0, noise = torch.randn(2, 3, 4, 8, 8)
    timesteps = torch.tensor([0, 500, 999])
    x, target = noised(abar[timesteps], x0, noise, prediction)
    torch.testing.assert_close(x, theirs.add_noise(x0, noise, timesteps))
    expected = noise if prediction == "epsilon" else theirs.get_velocity(x0, noise, timesteps)
    torch.testing.assert_close(target, expected)


def test_kl_is_that_of_two_gaussians_a_latent_dimension():
    means, std = torch.randn(2, 3, 4, 8, 8), torch.tensor([0.1, 0.5, 2.0])
    mine, other = (Gaussian(mean, std) for mean in means)
    normal = [torch.distributions.Normal(mean, std[:, None, None, None]) for mean in means]
    expected = torch.distributions.kl_divergence(*normal).mean(dim=(1, 2, 3))
    torch.testing.assert_close(mine.kl(other), expected, rtol=1e-4, atol=1e-6)


def test_guidance_one_is_the_prompts_own_prediction():
    null, text = torch.randn(2, 1, 4, 8, 8)
    torch.testing.assert_close(guide(null, text, 1.0), text)
    torch.testing.assert_close(guide(null, text, 5.0), 5 * text - 4 * null, rtol=1e-4, atol=1e-5)
