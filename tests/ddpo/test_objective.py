"""The objective: clipping on the right side, and what the two algorithms share."""

from __future__ import annotations

import math

import pytest
import torch

from ddpo.mdp import Gaussian
from ddpo.objective import Tally, ddpo_is, ddpo_sf, decoupled, importance, outside, truncated

pytestmark = pytest.mark.numbers
OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0])


def gradient(objective, delta: float, advantage: float) -> float:
    log_prob = torch.tensor([-1.0 + delta], requires_grad=True)
    objective(log_prob, torch.tensor([-1.0]), torch.tensor([advantage]), 0.1).sum().backward()
    return float(log_prob.grad)


def test_with_equal_policies_both_algorithms_have_one_gradient():
    for advantage in (-2.0, 0.5, 3.0):
        assert gradient(ddpo_is, 0.0, advantage) == pytest.approx(-advantage)
        assert gradient(ddpo_sf, 0.0, advantage) == pytest.approx(-advantage)


@pytest.mark.parametrize(
    ("delta", "advantage", "clipped"),
    [(0.2, 1.0, True), (0.2, -1.0, False), (-0.2, 1.0, False), (-0.2, -1.0, True), (0.05, 1.0, False)],
)
def test_only_steps_that_go_further_away_are_clipped(delta, advantage, clipped):
    expected = 0.0 if clipped else -advantage * math.exp(delta)
    assert gradient(ddpo_is, delta, advantage) == pytest.approx(expected)


def test_tally_adds_up_over_micro_batches():
    new = OLD + torch.tensor([0.0, 0.2, -0.2, 0.05])
    whole, parts = Tally(1), Tally(1)
    cut = outside(new, OLD, 0.1)
    whole.add(new, new, OLD, OLD, cut)
    for part in (slice(0, 1), slice(1, 4)):
        parts.add(new[part], new[part], OLD[part], OLD[part], cut[part])
    assert (whole.pairs, whole.clipped) == (parts.pairs, parts.clipped) == (4, 2)
    assert whole.kl == pytest.approx(parts.kl)
    assert whole.kl == pytest.approx(sum(math.exp(d) - 1 - d for d in (0.0, 0.2, -0.2, 0.05)), rel=1e-5)
    assert whole.ratio_max == pytest.approx(math.exp(0.2)) and whole.ratio_min == pytest.approx(math.exp(-0.2))
    assert whole.max_delta == pytest.approx(0.2) and whole.abs_delta == pytest.approx(0.45)
    assert whole.effective_share == pytest.approx(parts.effective_share)


def test_delta_by_timestep_is_the_mean_noisiest_first():
    tally = Tally(1)
    tally.add_first([1, 951, 1], torch.tensor([0.2, -0.5, -0.4]), 0.3)
    assert list(tally.delta_by_timestep()) == [951, 1]
    assert tally.delta_by_timestep()[1] == pytest.approx(0.3)
    assert tally.first_cut_share == pytest.approx(2 / 3)  # exp(-0.5) and exp(-0.4) are below 0.7
    assert math.isnan(Tally(1).first_cut_share)


def test_importance_is_the_ratio_of_the_joint_probabilities():
    new, old = (Gaussian(torch.full((1, 4, 3, 3), mean), torch.tensor([0.5])) for mean in (0.02, 0.0))
    x = torch.linspace(-1, 1, 36).reshape(1, 4, 3, 3)
    joint = [torch.distributions.Normal(g.mean_BCHW, 0.5).log_prob(x).sum() for g in (new, old)]
    log_prob = new.log_prob(x).requires_grad_()
    ratio = importance(log_prob, old.log_prob(x), 36)
    assert float(ratio) == pytest.approx(math.exp(float(joint[0] - joint[1])), rel=1e-4)
    assert not ratio.requires_grad


def test_truncated_weighs_the_score_and_never_by_more_than_the_bound():
    log_prob = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weight = importance(log_prob, torch.tensor([-1.1, -1.001, -0.999]), 1000).clamp(max=2.0)
    assert weight.tolist() == pytest.approx([2.0, 2.0, math.exp(-1)], rel=1e-3)
    loss = truncated(log_prob, torch.tensor([1.0, -3.0, 2.0]), weight)
    assert loss.tolist() == pytest.approx([2.0, -6.0, 2 * math.exp(-1)], rel=1e-3)
    loss.sum().backward()
    assert log_prob.grad.tolist() == pytest.approx([-2.0, 6.0, -2 * math.exp(-1)], rel=1e-3)


@pytest.mark.parametrize(
    ("delta", "advantage", "clipped"), [(0.05, 2.0, False), (0.2, 2.0, True), (0.2, -2.0, False), (-0.2, -2.0, True)]
)
def test_decoupled_clips_around_the_proximal_policy_and_weighs_by_it(delta, advantage, clipped):
    log_prob = torch.tensor([-3.0 + delta], requires_grad=True)  # the behaviour policy's, -1, is far outside the clip
    loss = decoupled(log_prob, torch.tensor([-3.0]), torch.tensor([advantage]), torch.tensor([0.25]), 0.1)
    ratio = math.exp(delta)
    bounded = min(max(ratio, 0.9), 1.1)
    assert float(loss.detach()) == pytest.approx(0.25 * max(-advantage * ratio, -advantage * bounded), rel=1e-4)
    loss.sum().backward()
    assert float(log_prob.grad) == pytest.approx(0.0 if clipped else -0.25 * advantage * ratio, rel=1e-4)


def shared(nats: list[float], dimensions: int) -> float:
    tally, old = Tally(dimensions), torch.zeros(len(nats), dtype=torch.float64)
    new = torch.tensor(nats, dtype=torch.float64) / dimensions
    tally.add(old, new, old, old, old.bool())
    return tally.effective_share


def test_effective_sample_size_is_of_probabilities_whatever_the_latents_size():
    nats = [0.0, math.log(2), math.log(0.5)]
    for dimensions in (1, 1024, 16384):
        assert shared(nats, dimensions) == pytest.approx(3.5**2 / (3 * 5.25))
    assert shared([0.0] * 5, 64) == pytest.approx(1.0)
    assert shared([2000.0, 0.0, -2000.0, 1.0], 64) == pytest.approx(0.25)  # one pair is worth all; no overflow


def test_effective_sample_size_of_shifted_gaussians_is_what_the_docstring_says():
    x = torch.randn(200_000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = torch.ones(len(x), dtype=torch.float64)
    new, old = (Gaussian(torch.full_like(x, mean), one).log_prob(x) for mean in (0.6, 0.0))
    tally = Tally(1)
    tally.add(one, new, old, one, one.bool())
    assert tally.effective_share == pytest.approx(math.exp(-(0.6**2)), rel=0.02)
