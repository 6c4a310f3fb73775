"""Rewards that are a cosine in CLIP's space: CLIPScore, PickScore and HPSv2. All load as transformers' CLIPModel.

Consumes images and prompts, produces one number per image; waits for nothing but the model's load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpo.config import RewardConfig
from ddpo.device import place
from ddpo.pretrained import whole
from rewards import models
from rewards.locate import OPEN_CLIP_FILES, PUBLISHED, chosen, find_file, locate
from rewards.models import dtype_of, loading, tensors
from rewards.openclip import renamed


class Clip:
    """Unit embeddings of images and texts. Shape letters: B rows, D embedding width."""

    def __init__(self, model: str, dtype: str, device: str, processor: str = "") -> None:
        self.device = place(device)
        with loading(model, "a CLIP model (transformers' CLIPModel and its processor, or HPSv2's checkpoint)"):
            folder = locate(model)
            words = locate(processor) if processor else folder
            loaded = _load(folder, words, dtype_of(dtype, self.device))
            self.processor = models.processor(words)
        self.model: Any = loaded.to(self.device).eval().requires_grad_(False)
        self.width = int(loaded.config.projection_dim)
        self.side = int(loaded.config.vision_config.image_size)

    @torch.no_grad()
    def images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Embeddings (B, D) of unit length, fp32, of uint8 (height, width, 3) images of any sizes."""
        inputs = self.processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
        return _unit(self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (B, D) of unit length, fp32; texts are cut at the tokenizer's length."""
        inputs = self.processor(
            text=list(texts), padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
        ).to(self.device)
        pooled = self.model.text_model(**inputs).pooler_output
        return _unit(self.model.text_projection(pooled))


def _load(folder: str, config: str, dtype: torch.dtype) -> Any:
    """A CLIPModel, from a folder or hub repository in its own layout or in OpenCLIP's."""
    from transformers import CLIPConfig, CLIPModel

    path = Path(folder)
    inside = path.is_dir() and any((path / file).is_file() for file in OPEN_CLIP_FILES)
    if not (inside or path.is_file() or folder == PUBLISHED["hpsv2"]["model"]):
        return whole(CLIPModel, folder, dtype=dtype)
    model: Any = CLIPModel(CLIPConfig.from_pretrained(config))
    model.load_state_dict(renamed(tensors(find_file(folder, OPEN_CLIP_FILES))))
    return model.to(dtype)


def _unit(embedding_BD: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embedding_BD.float(), dim=1)


@dataclass(frozen=True)
class Scale:
    """What a published score does with the cosine, and with images that are not square."""

    factor: float | None  # None takes the model's own logit scale
    floor: float = -1.0  # cosines below it count as it
    whole: bool = False  # the whole image on black, instead of its middle square


SCALES = {
    "clipscore": Scale(2.5, floor=0.0),  # Hessel et al. 2021, equation 1
    "pickscore": Scale(None),
    "hpsv2": Scale(100.0, whole=True),  # Wu et al. 2023 print it in per cent
}


class Cosine:
    """r(x_0, c) = factor * max(cos(x_0, c), floor), by a published checkpoint or another one of its kind."""

    def __init__(self, config: RewardConfig) -> None:
        self.scale = SCALES[config.kind]
        self.clip = Clip(chosen(config, "model"), config.dtype, config.device, _processor(config))

    @torch.no_grad()
    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float], dict[str, Any]]:
        """One number per image."""
        seen = [letterbox(image, self.clip.side) for image in images] if self.scale.whole else images
        cosine_B = (self.clip.images(list(seen)) * self.clip.texts(prompts)).sum(1).clamp(min=self.scale.floor)
        own = self.clip.model.logit_scale.exp().float()
        return (cosine_B * (own if self.scale.factor is None else self.scale.factor)).tolist(), {}


def _processor(config: RewardConfig) -> str:
    """The name of a processor that is not beside the model: the published PickScore and HPSv2 come without."""
    model = chosen(config, "model")
    folder = Path(locate(model))
    bare = folder.exists() and not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    published = model == PUBLISHED[config.kind]["model"]
    return config.processor or (chosen(config, "processor") if bare or published else "")


def letterbox(image_YX3: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The whole image in the middle of a black square, as HPSv2 was trained; a square one is reduced, no more."""
    height, width, _ = image_YX3.shape
    scale = side / max(height, width)
    size = (round(width * scale), round(height * scale))
    canvas = Image.new("RGB", (side, side))
    reduced = Image.fromarray(image_YX3).resize(size, Image.Resampling.BICUBIC)
    canvas.paste(reduced, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)
