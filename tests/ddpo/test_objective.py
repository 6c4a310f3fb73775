"""The objective: clipping on the right side, and what the two algorithms share."""

from __future__ import annotations

import math

import pytest
import torch

from ddpo.objective import Tally, ddpo_is, ddpo_sf

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
    whole, parts = Tally(0.1), Tally(0.1)
    whole.add(new, new, OLD, OLD)
    for part in (slice(0, 1), slice(1, 4)):
        parts.add(new[part], new[part], OLD[part], OLD[part])
    assert (whole.pairs, whole.clipped) == (parts.pairs, parts.clipped) == (4, 2)
    assert whole.kl == pytest.approx(parts.kl)
    assert whole.kl == pytest.approx(sum(math.exp(d) - 1 - d for d in (0.0, 0.2, -0.2, 0.05)), rel=1e-5)
    assert whole.ratio_max == pytest.approx(math.exp(0.2)) and whole.ratio_min == pytest.approx(math.exp(-0.2))
    assert whole.max_delta == pytest.approx(0.2)


def test_delta_by_timestep_is_the_mean_noisiest_first():
    tally = Tally(0.1)
    tally.add_first([1, 951, 1], torch.tensor([0.2, -0.5, -0.4]))
    assert list(tally.delta_by_timestep()) == [951, 1]
    assert tally.delta_by_timestep()[1] == pytest.approx(0.3)
