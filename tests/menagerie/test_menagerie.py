"""The built-in model: loads as any other, knows its animals, stays small, says where it comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import actors.prompts
import menagerie
from ddpo.base import find
from menagerie import judge

pytestmark = pytest.mark.numbers


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(menagerie.FOLDER)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_found_by_name_and_is_a_stable_diffusion_1():
    base = find("menagerie")
    assert base.folder == menagerie.FOLDER and base.image_size == 64 and base.prediction == "epsilon"


def test_it_draws_the_animal_that_was_asked_for(pipe):
    animals = list(menagerie.ANIMALS[::5])
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(animals, num_inference_steps=20, guidance_scale=5.0, eta=1.0, generator=generator, output_type="np")
    names = judge.classify((drawn.images * 255).round().astype(np.uint8))
    right = sum(name == animal for name, animal in zip(names, animals, strict=True))
    assert right >= 6, dict(zip(animals, names, strict=True))


def test_the_empty_prompt_is_another_prediction(pipe):
    text, null = (pipe.encode_prompt([prompt], "cpu", 1, False)[0] for prompt in ("a cat", ""))
    x = torch.randn(1, *find("menagerie").latent_CHW, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([500])
    with torch.no_grad():
        difference = pipe.unet(x, timestep, text).sample - pipe.unet(x, timestep, null).sample
    assert difference.abs().mean() > 0.01


def test_any_text_has_tokens_and_comes_back(pipe):
    for text in ("a shoebill stork washing dishes", "Übergrößenträger 42!", "猫"):
        tokens = pipe.tokenizer(text)["input_ids"]
        assert len(tokens) <= pipe.tokenizer.model_max_length
        assert pipe.tokenizer.unk_token_id is None or len(set(tokens)) > 2


def test_the_folder_is_small_and_has_a_card():
    files = [path for path in menagerie.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    card = (menagerie.FOLDER / "README.md").read_text(encoding="utf-8")
    for fact in ("Noto", "Apache-2.0", "Fluent", "MIT", "Twemoji", "CC-BY", "python -m menagerie.make", "sheet.png"):
        assert fact.lower() in card.lower(), fact


def test_its_animals_are_the_papers():
    assert list(menagerie.ANIMALS) == actors.prompts.ANIMALS
    assert set(menagerie.SCENES_TAUGHT) < set(menagerie.ANIMALS)
