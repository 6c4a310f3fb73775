"""Per-prompt advantages against the reference's algorithm, written out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ddpo.advantage import Advantage, RewardWeights
from ddpo.config import AdvantageConfig
from ddpo.types import Prompts, Receipt, Scored


def scored(text: list[str], rewards: list[float], masked: dict[int, str] | None = None) -> Scored:
    count = len(text)
    prompts = Prompts(0, tuple(range(count)), tuple(text), ({},) * count, (0,) * count)
    return Scored(prompts, np.array(rewards), {}, {}, masked or {}, [receipt([np.nan] * count)], [], {})


def receipt(kl: list[float]) -> Receipt:
    return Receipt(tuple(range(len(kl))), 0, "", 0.0, np.array(kl), ())


def test_few_rewards_use_the_batch_many_use_the_prompt():
    advantage = Advantage(AdvantageConfig(buffer=4, min_count=3))
    first = advantage(scored(["a", "a", "b"], [1.0, 2.0, 6.0]))
    batch = np.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(first, (batch - batch.mean()) / (batch.std() + 1e-6))
    second = advantage(scored(["a", "b", "a"], [3.0, 8.0, 4.0]))
    own, batch = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 8.0, 4.0])
    np.testing.assert_allclose(second[[0, 2]], (batch[[0, 2]] - own.mean()) / (own.std() + 1e-6))
    np.testing.assert_allclose(second[1], (8.0 - batch.mean()) / (batch.std() + 1e-6))


def test_the_buffer_is_extended_first_and_forgets_the_oldest():
    advantage = Advantage(AdvantageConfig(buffer=2, min_count=2))
    advantage(scored(["a", "a"], [100.0, 1.0]))
    (value,) = advantage(scored(["a"], [3.0]))
    assert value == pytest.approx((3.0 - 2.0) / (1.0 + 1e-6))


def test_masked_images_take_no_part():
    advantage = Advantage(AdvantageConfig(buffer=4, min_count=1))
    values = advantage(scored(["a", "a", "a"], [1.0, np.nan, 3.0], {1: "reward failed"}))
    np.testing.assert_allclose(values, [-1 / (1 + 1e-6), 0, 1 / (1 + 1e-6)])
    assert advantage.state() == {"a": [1.0, 3.0]}


def test_without_statistics_the_batch_is_normalised():
    rewards = np.array([1.0, 2.0, 6.0])
    values = Advantage(AdvantageConfig(over="batch"))(scored(["a", "b", "c"], rewards.tolist()))
    np.testing.assert_allclose(values, (rewards - rewards.mean()) / (rewards.std() + 1e-8))


def test_restored_statistics_go_on_the_same():
    config, rng = AdvantageConfig(buffer=5, min_count=2), np.random.default_rng(0)
    batches = [scored(["a", "b"] * 3, rng.normal(size=6).tolist()) for _ in range(4)]
    straight, stopped = Advantage(config), Advantage(config)
    expected = [straight(batch) for batch in batches]
    for batch in batches[:2]:
        stopped(batch)
    resumed = Advantage(config)
    resumed.restore(stopped.state())
    for batch, values in zip(batches[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(resumed(batch), values)


def test_rwr_weights_are_a_softmax_per_prompt_of_mean_one():
    weights = RewardWeights(AdvantageConfig(inverse_temperature=0.5), sparse=False)(
        scored(["a", "b", "a", "a"], [1.0, 50.0, 3.0, np.nan], {3: "reward failed"})
    )
    powers = np.exp(0.5 * np.array([1.0, 3.0]))
    np.testing.assert_allclose(weights, [*(2 * powers / powers.sum())[:1], 1.0, (2 * powers / powers.sum())[1], 0.0])


def test_sparse_rwr_keeps_the_best_tenth_of_each_prompt():
    rewards = [float(number) for number in range(20)] + [100.0, 200.0]
    weights = RewardWeights(AdvantageConfig(), sparse=True)(scored(["a"] * 20 + ["b"] * 2, rewards))
    assert np.flatnonzero(weights).tolist() == [18, 19, 21]


def test_a_group_is_compared_with_itself_alone():
    advantage = Advantage(AdvantageConfig(over="group"))
    advantage(scored(["a", "a"], [100.0, 900.0]))  # is forgotten
    values = advantage(scored(["a", "b", "a", "b"], [1.0, 5.0, 3.0, 5.0]))
    np.testing.assert_allclose(values, [-1, 0, 1, 0], atol=1e-5)


def test_kl_to_the_base_is_taken_from_the_reward():
    batch = dataclasses.replace(scored(["a", "a", "a"], [1.0, 2.0, 3.0]), receipts=[receipt([0.0, 0.1, 0.3])])
    paid = scored(["a", "a", "a"], [1.0, 1.0, 0.0])
    for make in (Advantage, lambda config: RewardWeights(config, sparse=False)):
        np.testing.assert_allclose(
            make(AdvantageConfig(kl=10.0, min_count=1))(batch), make(AdvantageConfig(min_count=1))(paid), atol=1e-9
        )
