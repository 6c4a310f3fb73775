"""ImageReward and HPSv2 as published: mapped to transformers' classes, they say what their authors' code says.

tests/data/published_scores.json was written with the code of the wheels image_reward 1.5 (its ViT, its BERT with
cross-attention, its preprocessing) and open_clip_torch 3.3.0 with hpsv2 1.2.0's preprocessing, all on the weights,
pictures and prompts of tests/support/published.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import published
import pytest
import seeing
import torch

from ddpo.config import RewardConfig
from ddpo.errors import RewardError
from ddpo.types import Images
from rewards.clip import letterbox
from rewards.kinds import make
from rewards.worker import RewardWorker

pytestmark = pytest.mark.numbers
SCORES = json.loads((Path(__file__).parent.parent / "data" / "published_scores.json").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The two checkpoints, each with its processor beside it."""
    root = tmp_path_factory.mktemp("published")
    return {name: str(getattr(published, name)(root / name)) for name in ("imagereward", "hpsv2")}


def config(kind: str, folder: str) -> RewardConfig:
    return RewardConfig(kind, model=folder, processor=folder, dtype="float32")


@pytest.mark.parametrize(("kind", "height", "width"), [
    (kind, *size) for kind in ("imagereward", "hpsv2") for size in ((32, 32), (48, 64))
])
def test_scores_are_those_of_the_authors_code(folders, kind, height, width):
    scores, _ = make(config(kind, folders[kind]), "")(published.pictures(height, width), published.PROMPTS, [{}] * 2)
    np.testing.assert_allclose(scores, SCORES[f"{kind} {height}x{width}"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["imagereward", "hpsv2"])
def test_one_image_and_a_prompt_of_a_thousand_words(folders, kind):
    worker = RewardWorker("seen", config(kind, folders[kind]), "")
    scores = worker.score(Images((5,), ("a cat " * 500,), ({},), published.pictures(40, 30)[:1]))
    assert list(scores.values) == [5] and np.isfinite(scores.values[5]) and not scores.failures


def test_hpsv2_loads_a_converted_folder_as_well(tmp_path):
    folder = str(seeing.clip(tmp_path / "clip", activation="gelu"))
    both = [make(RewardConfig(kind, model=folder), "") for kind in ("hpsv2", "clipscore")]
    hps, clipscore = (reward(published.pictures(32, 32), published.PROMPTS, [{}] * 2)[0] for reward in both)
    for one, other in zip(hps, clipscore, strict=True):
        assert max(one, 0) == pytest.approx(40 * other, abs=1e-3)


def test_a_square_image_fills_the_square_and_another_is_framed_in_black():
    framed = letterbox(np.full((20, 40, 3), 200, np.uint8), 32)
    assert framed.shape == (32, 32, 3) and (framed[8:24] == 200).all()
    assert not framed[:8].any() and not framed[24:].any()
    assert (letterbox(np.full((40, 40, 3), 200, np.uint8), 32) == 200).all()


@pytest.mark.parametrize(("kind", "file"), [("imagereward", "ImageReward.pt"), ("hpsv2", "HPS_v2.1_compressed.pt")])
def test_a_checkpoint_that_lacks_a_weight_is_refused(folders, kind, file, tmp_path):
    weights = torch.load(Path(folders[kind]) / file, weights_only=True)
    inner = weights.get("state_dict", weights)
    inner.pop(next(name for name in inner if name.endswith(("mlp.c_fc.bias", "attn.qkv.bias"))))
    torch.save(weights, tmp_path / file)
    with pytest.raises(RewardError, match=f"did not load as .*{'CLIP' if kind == 'hpsv2' else 'ImageReward'}"):
        make(RewardConfig(kind, model=str(tmp_path), processor=folders[kind]), "")


class Code:
    """Something that is no tensor."""


def test_a_checkpoint_that_holds_code_is_not_run(tmp_path):
    torch.save({"model": Code()}, tmp_path / "ImageReward.pt")
    with pytest.raises(RewardError, match="holds something else than tensors"):
        make(RewardConfig("imagereward", model=str(tmp_path)), "")


@pytest.mark.parametrize("kind", ["clipscore", "hpsv2", "aesthetic"])
def test_a_model_of_another_kind_is_refused_and_not_drawn_at_random(kind, tmp_path):
    with pytest.raises(RewardError, match=r"did not load as a CLIP model .* of its weights are not there"):
        make(RewardConfig(kind, model="menagerie"), "")
