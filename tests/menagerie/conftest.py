"""Pictures that menagerie draws, for all that look at them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import menagerie


@pytest.fixture(scope="session")
def scenes() -> tuple[np.ndarray, list[str]]:
    """Scenes that menagerie draws well, with their prompts."""
    pipe = StableDiffusionPipeline.from_pretrained(menagerie.FOLDER)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    prompts = [
        menagerie.scene(animal, activity)
        for animal in menagerie.SCENES_TAUGHT[::6] for activity in menagerie.ACTIVITIES
    ]
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(prompts, num_inference_steps=20, guidance_scale=5.0, eta=1.0, generator=generator, output_type="np")
    return (drawn.images * 255).round().astype(np.uint8), prompts
