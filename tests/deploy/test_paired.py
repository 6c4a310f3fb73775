"""Paired differences: what they are on a small example, and whether their intervals hold what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.evaluation.paired import difference, interval

NAN = float("nan")


def test_a_difference_is_the_mean_over_prompts_of_their_images():
    base, tuned = np.array([1.0, 2.0, 3.0, NAN, 5.0]), np.array([2.0, 4.0, 3.0, 9.0, NAN])
    found = difference(base, tuned, ["a", "a", "b", "b", "b"], seed=0)
    assert found is not None
    assert (found.base, found.tuned, found.change) == pytest.approx((2.25, 3.0, 0.75))
    assert (found.pairs, found.left_out, found.improved) == (3, 2, pytest.approx(2 / 3))


def test_what_was_never_scored_on_both_sides_has_no_difference():
    assert difference(np.array([1.0, NAN]), np.array([NAN, 2.0]), ["a", "b"], seed=0) is None


def test_one_pair_has_no_interval_and_no_verdict():
    found = difference(np.array([1.0]), np.array([2.0]), ["a"], seed=0)
    assert found is not None and found.low is None and found.verdict == 0


def test_images_of_a_single_prompt_are_the_sample():
    tuned = np.array([0.9, 1.0, 1.1, 1.0, 1.05])
    found = difference(np.zeros(5), tuned, ["a"] * 5, seed=0)
    assert found is not None and found.low is not None and found.high is not None
    assert 0.8 < found.low < found.change < found.high < 1.2 and found.verdict == 1


def test_the_same_change_everywhere_is_certain_and_none_is_exactly_zero():
    base = np.arange(6.0)
    same = difference(base, base, list("aabbcc"), seed=0)
    assert same is not None and (same.change, same.low, same.high, same.verdict, same.improved) == (0, 0, 0, 0, 0)
    fallen = difference(base, base - 0.5, list("aabbcc"), seed=0)
    assert fallen is not None and (fallen.low, fallen.high, fallen.verdict) == (-0.5, -0.5, -1)


def test_an_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(1).normal(size=20)
    assert interval(values, 5) == interval(values, 5) != interval(values, 6)


@pytest.mark.parametrize(("prompts", "images"), [(6, 3), (40, 2), (40, 1)])
def test_95_of_100_intervals_hold_the_truth_although_images_of_a_prompt_agree(prompts, images):
    """Each prompt has an effect of its own (deviation 1) and each image noise (deviation 1): a bootstrap over images,
    as if they were independent, holds the truth in 90 % of the cases of (40, 2) and in 81 % of (6, 3)."""
    stream, held, tries = np.random.default_rng(2), 0, 300
    names = [str(prompt) for prompt in range(prompts) for _ in range(images)]
    for seed in range(tries):
        effect = np.repeat(stream.normal(0.7, 1.0, prompts), images) + stream.normal(0, 1.0, prompts * images)
        base = stream.normal(0, 5.0, prompts * images)  # how different the images are does not matter, being paired
        found = difference(base, base + effect, names, seed)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0.7 <= found.high
    assert 0.92 <= held / tries <= 0.98
