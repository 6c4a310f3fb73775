"""Distances between pictures: what they see, what they do not, and their scale."""

from __future__ import annotations

import numpy as np
import pytest

from ddpo.pictures import diversity, shift


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


def flat(*levels: int) -> np.ndarray:
    return np.stack([np.full((64, 48, 3), level, dtype=np.uint8) for level in levels])


def test_the_distance_is_zero_for_the_same_image_and_one_from_black_to_white(noise):
    assert shift(noise, noise).tolist() == [0.0] * 6
    assert shift(flat(0, 255, 51), flat(255, 255, 0)).tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_the_distance_sees_layout_and_not_fine_noise(noise):
    left = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    left[:, :, :32] = 255
    right = 255 - left
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None].repeat(3, 3)
    assert shift(left, right) == pytest.approx(1.0)
    assert shift(checks, 255 - checks) < 0.01  # the other way round pixel by pixel, and the same grey from afar


def test_the_size_of_the_images_hardly_matters():
    wide = np.linspace(0, 255, 512).astype(np.uint8)[None, None, :, None].repeat(512, 1).repeat(3, 3)
    for small, large in [(wide[:, ::32, ::32], wide[:, ::8, ::8]), (wide[:, ::8, ::8], wide)]:
        assert shift(small, small[:, :, ::-1]) == pytest.approx(shift(large, large[:, :, ::-1]), rel=0.1)


def test_diversity_is_the_mean_over_pairs_and_every_prompt_counts_once():
    images = flat(0, 255, 255, 10, 61)
    assert diversity(images, ["a", "a", "a", "b", "b"]) == pytest.approx((2 / 3 + 0.2) / 2)
    shuffled = [3, 1, 4, 0, 2]
    assert diversity(images[shuffled], ["b", "a", "b", "a", "a"]) == pytest.approx((2 / 3 + 0.2) / 2)


def test_diversity_falls_to_zero_where_a_prompt_always_gives_the_same_image(noise):
    assert diversity(noise, ["a"] * 6) > 0.1
    assert diversity(noise[[0, 0, 0]], ["a"] * 3) == 0.0


def test_prompts_with_one_image_have_no_diversity(noise):
    assert np.isnan(diversity(noise[:2], ["a", "b"]))
    assert diversity(noise[:3], ["a", "a", "b"]) == diversity(noise[:2], ["a", "a"])
