"""Images that could not be drawn, because the network gave NaN: masked, counted, and the end of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from terminal import result

from actors.sampler import Sampler
from ddpo.config import RewardConfig
from ddpo.types import Captions, Images
from rewards.worker import RewardWorker

PICKY = """
def reward(images, prompts, metadata):
    assert len(images) > 0 and images.reshape(len(images), -1).any(1).all(), "shown what is no image"
    return [float(image.mean()) for image in images], {}
"""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """broken([3, ...]): the chains of these images go wrong; of grids, of the images by their number there."""

    def breaks(images: Collection[int]) -> None:
        proper = Sampler._chain

        def chain(self, prompts, c, null):
            states, log_probs, kl = proper(self, prompts, c, null)
            for row, image in enumerate(prompts.ids):
                if image in images:
                    states[row, -1], log_probs[row, -1] = float("nan"), float("nan")
            return states, log_probs, kl

        monkeypatch.setattr(Sampler, "_chain", chain)

    return breaks


def test_they_are_masked_and_the_run_goes_on(train, ddpo, broken, reward_file, tmp_path):
    broken([1, 8, 9, 10, 11])  # one of step 1 (and of the grids), and a whole chunk of step 2
    answer = train(*reward_file(PICKY), "steps=3", "lag=1")
    assert answer.code == 0, answer.err
    folder = tmp_path / "runs" / "small"
    assert (result(folder)["images_masked"], result(folder)["images_trained"]) == (5, 19)
    assert "5  the denoiser gave NaN or infinity" in ddpo("audit", folder).out
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    masked = {line["image"]: line for line in lines if line.get("fate") == "masked"}
    assert sorted(masked) == [1, 8, 9, 10, 11] and {line["pixels"] for line in masked.values()} == {""}
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()


def test_they_cannot_be_drawn_again_and_their_neighbours_can(train, ddpo, broken, tmp_path):
    broken([1])
    assert train("steps=1").code == 0
    assert ddpo("replay", tmp_path / "runs" / "small", "2").code == 0
    answer = ddpo("replay", tmp_path / "runs" / "small", "1")
    assert answer.code == 2 and "image 1 of" in answer.err
    assert "has no pixels: the denoiser gave NaN or infinity." in answer.err


def test_their_tiles_of_a_grid_are_black(train, broken, tmp_path):
    broken([-2])
    assert train("steps=1").code == 0
    with Image.open(next(Path(tmp_path / "runs" / "small" / "images").glob("*.png"))) as grid:
        tiles = np.asarray(grid)
    assert tiles[:, :16].any() and not tiles[:, 16:32].any()


def test_a_step_of_nothing_else_ends_the_run_with_advice(train, broken):
    broken(range(8))
    answer = train()
    assert answer.code == 1 and "none of the 8 images of step 1 could be drawn" in answer.err
    assert 'the denoiser gave NaN or infinity. In float16 some models overflow: write policy.dtype = "bfloat16"' in (
        answer.err
    )


def test_a_chunk_without_images_asks_no_reward():
    none = Images((), (), (), np.empty((0, 4, 4, 3), np.uint8))
    worker = RewardWorker("mine", RewardConfig("function", path="mine.py"), PICKY)
    assert (worker.score(none).ids, worker.score(none).failures) == ((), {})
    described = worker.describe(none)
    assert described == Captions((), (), (), (), {}, {}) and worker.compare(described).ids == ()
