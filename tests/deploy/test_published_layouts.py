"""Every recipe of a real model, from training to publication, on tiny models in the files that the hub has of them."""

from __future__ import annotations

from collections.abc import Iterator

import hub
import layouts
import pytest
import torch
from PIL import Image
from terminal import metrics

from actors.sampler import Sampler
from ddpo.base import find
from ddpo.config import Run
from deploy import recipes
from rewards.locate import MODELS, SHIPPED, chosen

SMALL = [
    "steps=1", "policy.steps=2", "actors.batch=2", "actors.gpus=0", "learner.gpus=0", "learner.images_per_step=2",
    "learner.minibatch=2", "learner.micro_batch=2", "learner.timestep_fraction=1", "images.count=1",
    "advantage.min_count=2",
]
REAL = [name for name in recipes.names() if recipes.find(name, []).policy.base != "menagerie"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """A hub with all repositories, and one cache for all tests here."""
    with hub.found(tmp_path_factory.mktemp("huggingface")) as server:
        server.models = layouts.publish(tmp_path_factory.mktemp("hub"))
        yield server


def models(run: Run) -> set[str]:
    """Everything that a run needs of the hub."""
    options = {chosen(reward, key) for reward in run.rewards.values() for key in MODELS}
    return {run.policy.base, *options} - {"", *SHIPPED}


def test_everything_that_recipes_name_is_played_here(place):
    assert set(place.models) == {model for name in REAL for model in models(recipes.find(name, []))}


def shrunken(name: str) -> list[str]:
    """Overrides that leave of a recipe what is of the models."""
    run = recipes.find(name, [])
    words = list(SMALL)
    for reward, table in run.rewards.items():
        words += [f"rewards.{reward}.{key}=0" for key in ("gpus",) if table.gpus]
        words += [f"rewards.{reward}.stages.{stage}.gpus=0" for stage, own in table.stages.items() if own.gpus]
        words += [f"rewards.{reward}.max_tokens=3"] if table.kind == "alignment" else []
    return words


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_goes_from_training_to_publication(ddpo, place, name, tmp_path):
    assert ddpo("train", name, "--in-process", *shrunken(name)).code == 0
    (row,) = metrics(tmp_path / "runs" / name)
    assert row["images_masked"] == 0 and row["reward_mean"] is not None
    (tmp_path / "two.txt").write_text("a cat\na dog\n")
    answer = ddpo("sample", f"runs/{name}", "a cat", "--steps", "2")
    assert answer.code == 0 and answer.err == "", answer
    with Image.open(answer.out.strip()) as picture:
        assert picture.size == (16, 16)
    answer = ddpo("eval", f"runs/{name}", "--suite", "two.txt", "--images", "1", "--deploy-steps", "2", "--out", "eval")
    assert answer.code == 0, answer
    assert not any("failed" in line for line in (tmp_path / "eval" / "eval.csv").read_text().splitlines())
    answer = ddpo("publish", f"runs/{name}", "--out", "out")
    assert answer.code == 0 and f"base_model: {recipes.find(name, []).policy.base}" in (
        tmp_path / "out" / "README.md").read_text()


def test_of_every_model_one_format_of_every_part_is_downloaded(place):
    needed = {model for name in ("compressibility", "compressibility-sdxl") for model in models(recipes.find(name, []))}
    for name in needed:
        find(name)
    given = [file for file in place.given if file.startswith(tuple(needed))]
    assert given and not [file for file in given if not file.endswith((".json", ".txt", ".md", "model.safetensors"))]
    assert not [file for file in place.given if "fp16" in file or "safety" in file or "feature_extractor" in file]


@pytest.mark.parametrize("name", ["CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-xl-base-1.0"])
def test_weights_under_old_keys_are_those_that_are_loaded(place, name):
    folder = place.models[name]
    run = recipes.find("compressibility", [f"policy.base={folder}", "policy.dtype=float32", *SMALL])
    sampler = Sampler(run, find(str(folder)))
    held = torch.load(folder / "vae" / "diffusion_pytorch_model.bin", weights_only=True)
    attention = "decoder.mid_block.attentions.0"
    loaded = sampler.vae.get_submodule(attention).to_q.weight.data
    torch.testing.assert_close(loaded, held[f"{attention}.query.weight"])
    held = torch.load(folder / "text_encoder" / "pytorch_model.bin", weights_only=True)
    loaded = {f"text_model.{key.removeprefix('text_model.')}": value
              for key, value in sampler.text.encoders[0].state_dict().items()}
    for key, value in held.items():
        if not key.endswith("position_ids"):
            torch.testing.assert_close(loaded[key], value)
