"""Rewards and the guard around them."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from ddpo.config import RewardConfig
from ddpo.errors import RewardError
from ddpo.types import Chunk, Images, Prompts, Receipt, Rollouts
from rewards import jpeg
from rewards.batch import combine
from rewards.worker import RewardWorker

PLAIN = np.full((64, 64, 3), 128, np.uint8)
NOISE = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
IMAGES = Images((5, 6), ("a cat", "a dog"), ({}, {"n": 1}), np.stack([PLAIN, NOISE]))


def worker(source: str, **options: object) -> RewardWorker:
    config = RewardConfig(kind="function", path="/nowhere/mine.py", **options)
    return RewardWorker("mine", config, source)


def test_jpeg_size_is_the_files_at_quality_95():
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", quality=95)
    scores, _ = jpeg.incompressibility(IMAGES.pixels_BYX3, IMAGES.text, IMAGES.metadata)
    assert scores[1] == len(buffer.getvalue()) / 1000 and scores[0] < scores[1]
    assert jpeg.compressibility(IMAGES.pixels_BYX3, IMAGES.text, IMAGES.metadata)[0] == [-s for s in scores]


def test_a_users_function_sees_pixels_texts_and_metadata():
    scores = worker(
        "def reward(images, prompts, metadata):\n"
        "    assert images.shape == (2, 64, 64, 3) and images.dtype == 'uint8'\n"
        "    return [len(p) + m.get('n', 0) for p, m in zip(prompts, metadata)], {'seen': prompts}\n"
    ).score(IMAGES)
    assert scores.values == {5: 5.0, 6: 6.0} and scores.failures == {}
    assert scores.info == {"seen": ["a cat", "a dog"]}


@pytest.mark.parametrize("answer", ["np.array([[1.0], [2.0]])", "torch.tensor([1, 2])", "(1.0, 2)"])
def test_arrays_tensors_and_lists_are_scores(answer):
    source = f"import numpy as np, torch\ndef reward(i, p, m): return {answer}, {{}}"
    assert worker(source).score(IMAGES).values == {5: 1.0, 6: 2.0}


def test_a_batch_of_one_works():
    one = Images((5,), ("a cat",), ({},), PLAIN[None])
    assert worker("import numpy as np\ndef reward(i, p, m): return np.array(3.0), {}").score(one).values == {5: 3.0}


def test_a_reward_that_raises_masks_its_images_with_the_reason():
    scores = worker("def reward(i, p, m): raise OSError('no GPU')").score(IMAGES)
    assert scores.values == {}
    assert scores.failures[5] == "reward 'mine' failed: OSError: no GPU (/nowhere/mine.py, line 1)"


@pytest.mark.parametrize("answer", ["[None, 2.0]", "np.array([None, 2.0])"])
def test_none_is_no_score_for_that_image_alone(answer):
    info = "{'missing': ['too dark', None], 'light': [0, 9]}"
    scores = worker(f"import numpy as np\ndef reward(i, p, m): return {answer}, {info}").score(IMAGES)
    assert scores.values == {6: 2.0} and scores.failures == {5: "reward 'mine': too dark"}
    assert scores.info == {"light": [0, 9]}


def test_of_info_only_what_is_per_image_and_plain_is_kept():
    info = "{'a': np.array([1.5, np.nan]), 'b': 'no', 'c': [1], 'd': [[1], [2]], 'e': ('x', None), 'f': 3}"
    scores = worker(f"import numpy as np\ndef reward(i, p, m): return [1, 2], {info}").score(IMAGES)
    assert scores.info == {"a": [1.5, None], "e": ["x", None]}


@pytest.mark.parametrize("wait", ["time.sleep(60)", "while True: pass"])
def test_a_reward_that_hangs_is_stopped_at_its_timeout(wait):
    start = time.monotonic()
    scores = worker(f"import time\ndef reward(i, p, m):\n    {wait}", timeout=0.2).score(IMAGES)
    assert time.monotonic() - start < 10
    assert "took more than 0.2 s" in scores.failures[6] and scores.values == {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[1.0], {}", "1 scores for 2 images"),
        ("[1.0, float('nan')], {}", "returned nan for image 1"),
        ("[1.0, float('-inf')], {}", "returned -inf"),
        ("['a', 'b'], {}", "no numbers"),
        ("[1.0, 2.0]", "return a pair"),
        ("None", "return a pair"),
    ],
)
def test_a_broken_contract_stops_the_run(answer, message):
    with pytest.raises(RewardError, match=message):
        worker(f"def reward(i, p, m): return {answer}").score(IMAGES)


def test_a_file_that_fails_while_loading_is_named():
    with pytest.raises(RewardError, match=r"mine\.py failed while loading: ZeroDivisionError"):
        worker("1 / 0\ndef reward(i, p, m): return [], {}")


def rollouts() -> tuple[Rollouts, list[Receipt]]:
    prompts = Prompts(0, (5, 6), IMAGES.text, IMAGES.metadata, (1, 2))
    receipt = Receipt((5, 6), 0, "x", 2.0, np.full(2, np.nan), ("", ""))
    return Rollouts(prompts, [Chunk(IMAGES, None, receipt)]), [receipt]


def test_parts_are_summed_by_weight_and_kept_apart():
    config = {"a": RewardConfig(weight=2.0), "b": RewardConfig(weight=-1.0)}
    scores = {
        "a": [worker("def reward(i, p, m): return [1, 2], {}").score(IMAGES)],
        "b": [worker("def reward(i, p, m): return [10, 20], {}").score(IMAGES)],
    }
    scored = combine(*rollouts(), scores, config)
    assert scored.rewards_B.tolist() == [-8, -16]
    assert scored.parts["b"].tolist() == [10, 20] and scored.seconds["sample"] == 2.0


def test_one_missing_part_masks_the_image_and_all_missing_stops():
    config = {"a": RewardConfig(), "b": RewardConfig()}
    good = worker("def reward(i, p, m): return [1, 2], {}").score(IMAGES)
    bad = worker("def reward(i, p, m): raise ValueError('never')").score(IMAGES)
    half = type(bad)(bad.ids, {6: 1.0}, {5: "reward 'b' failed"}, {}, {})
    scored = combine(*rollouts(), {"a": [good], "b": [half]}, config)
    assert scored.masked == {5: "reward 'b' failed"} and scored.kept_B.tolist() == [False, True]
    assert np.isnan(scored.rewards_B[0]) and scored.rewards_B[1] == 3.0
    with pytest.raises(RewardError, match=r"no image of step 1 .* never"):
        combine(*rollouts(), {"a": [good], "b": [bad]}, config)


def test_a_watched_reward_is_logged_and_masks_nothing():
    config = {"a": RewardConfig(), "seen": RewardConfig(weight=0.0)}
    good = worker("def reward(i, p, m): return [1, 2], {'word': ['x', 'y']}").score(IMAGES)
    gone = worker("def reward(i, p, m): return [None, 7], {}").score(IMAGES)
    scored = combine(*rollouts(), {"a": [good], "seen": [gone]}, config)
    assert scored.masked == {} and scored.rewards_B.tolist() == [1.0, 2.0]
    assert np.isnan(scored.parts["seen"][0]) and scored.parts["seen"][1] == 7.0
    assert scored.info == {"a": {"word": ["x", "y"]}, "seen": {}}
