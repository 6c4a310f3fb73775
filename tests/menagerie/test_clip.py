"""The CLIP in miniature that ships, the head on it, and the reward that they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddpo.config import RewardConfig
from menagerie import clip, colourful
from rewards.clip import Clip
from rewards.kinds import make
from rewards.locate import SHIPPED
from rewards.train_aesthetic import correlation

pytestmark = pytest.mark.numbers


def test_of_all_captions_the_right_one_is_nearest_to_what_menagerie_draws(scenes):
    images, prompts = scenes
    model = Clip("menagerie-clip", "float32", "cpu")
    nearest = (model.images(list(images)) @ model.texts(clip.CAPTIONS).T).argmax(1).tolist()
    assert np.mean([clip.CAPTIONS[place] == prompt for place, prompt in zip(nearest, prompts, strict=True)]) >= 0.8


def test_clipscore_prefers_the_right_prompt_also_without_its_article(scenes):
    images, prompts = scenes
    reward = make(RewardConfig("clipscore", model="menagerie-clip"), "")
    bare = [prompt.split(" ", 1)[1] for prompt in prompts]
    for right in (prompts, bare):
        better = np.array(reward(images, right, [])[0]) > np.array(reward(images, right[3:] + right[:3], [])[0])
        assert better.mean() >= 0.9


def test_it_knows_what_colour_is_behind():
    flat = {"red": (200, 40, 40), "green": (50, 160, 60), "blue": (50, 90, 200), "purple": (120, 50, 160)}
    images = [np.full((64, 64, 3), colour, np.uint8) for colour in flat.values()]
    assert [clip.colour(image) for image in images] == list(flat)
    model = Clip("menagerie-clip", "float32", "cpu")
    texts = model.texts([f"an empty background on a {name} background" for name in flat])
    assert (model.images(images) @ texts.T).argmax(1).tolist() == list(range(len(flat)))


def test_colourfulness_is_hasler_and_suesstrunks():
    assert colourful.colourfulness(np.full((8, 8, 3), 90, np.uint8)) == 0
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4, :, 0] = halves[4:, :, 1] = 255  # red - green is 255 and -255, yellow - blue is 127.5 everywhere
    assert colourful.colourfulness(halves) == pytest.approx(255 + 0.3 * 127.5)


def test_the_head_that_ships_says_how_colourful_a_picture_is(scenes):
    images, _ = scenes
    reward = make(RewardConfig("aesthetic", model="menagerie-clip", head="menagerie-colourful"), "")
    said, truth = reward(images, [], [])[0], colourful.reward(images, [], [])[0]
    assert correlation(np.array(said), np.array(truth)) > 0.6
    card = json.loads((SHIPPED["menagerie-colourful"] / "head.json").read_text())
    assert card["clip"] == "menagerie-clip" and card["held_out"]["pearson"] > 0.8


def test_the_folders_are_small_and_the_model_has_a_card():
    for folder, limit in ((clip.FOLDER, 4e6), (SHIPPED["menagerie-colourful"], 3e5)):
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= limit
    card = (clip.FOLDER / "README.md").read_text(encoding="utf-8")
    for fact in ("python -m menagerie.clip", "licences", "held-out"):
        assert fact in card, fact
