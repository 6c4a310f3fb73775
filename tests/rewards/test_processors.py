"""What makes pixels of pictures for the rewards' models: Pillow, whatever else is installed; processors of any age."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
import seeing
from transformers.models.auto import image_processing_auto

from rewards.clip import Clip
from rewards.describe import Describer

MODELS: dict[str, tuple[Callable[[Path], Path], Callable[[str], object]]] = {
    "CLIP": (seeing.clip, lambda folder: Clip(folder, "float32", "cpu").processor),
    "CLIP, as published": (layouts.clip, lambda folder: Clip(folder, "float32", "cpu").processor),
    "LLaVA": (seeing.llava, lambda folder: Describer(folder, 3, "float32", "cpu").processor),
    "LLaVA, as published": (layouts.llava, lambda folder: Describer(folder, 3, "float32", "cpu").processor),
}


@pytest.mark.parametrize("name", MODELS)
def test_pixels_are_made_by_pillow_where_torchvision_is_there_too(name, tmp_path, monkeypatch):
    make, load = MODELS[name]
    folder, asked = make(tmp_path / "model"), []
    found = image_processing_auto._load_class_with_fallback
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(image_processing_auto, "_load_class_with_fallback",
                        lambda mapping, backend: asked.append(backend) or found(mapping, backend))
    used = type(load(str(folder)).image_processor).__name__
    assert asked[-1] == "pil" and used == "CLIPImageProcessorPil"


def test_a_processor_that_does_not_know_of_patches_is_told_how_many_tokens_a_picture_is(tmp_path):
    pictures, questions = np.zeros((2, 64, 64, 3), np.uint8), ["what is this?", "and what is in this image?"]
    said = []
    for number, make in enumerate((seeing.llava, layouts.llava)):
        describer = Describer(str(make(tmp_path / str(number))), 3, "float32", "cpu")
        describer.processor.chat_template = None
        said.append((describer.processor.patch_size, describer.processor.num_additional_image_tokens,
                     len(describer.ask(pictures, questions))))
    assert said[0] == said[1] == (8, 1, 2)
