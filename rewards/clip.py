"""Rewards that are a cosine in CLIP's space: CLIPScore and PickScore. Both load as transformers' CLIPModel.

Consumes images and prompts, produces one number per image; waits for nothing but the model's load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpo.config import RewardConfig
from rewards.locate import locate
from rewards.models import dtype_of, loading, place


class Clip:
    """Unit embeddings of images and texts. Shape letters: B rows, D embedding width."""

    def __init__(self, model: str, dtype: str, device: str, processor: str = "") -> None:
        from transformers import AutoProcessor, CLIPModel

        self.device = place(device)
        folder = locate(model)
        with loading(model, "a CLIP model (transformers' CLIPModel and its processor)"):
            loaded: Any = CLIPModel.from_pretrained(
                folder, dtype=dtype_of(dtype, self.device), use_safetensors=True
            )
            self.processor: Any = AutoProcessor.from_pretrained(locate(processor) if processor else folder)
        self.model: Any = loaded.to(self.device).eval().requires_grad_(False)
        self.width = int(loaded.config.projection_dim)

    @torch.no_grad()
    def images(self, images_BYX3: NDArray[np.uint8]) -> Tensor:
        """Embeddings (B, D) of unit length, fp32."""
        inputs = self.processor(images=[Image.fromarray(image) for image in images_BYX3], return_tensors="pt")
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


def _unit(embedding_BD: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embedding_BD.float(), dim=1)


@dataclass(frozen=True)
class Published:
    """A published checkpoint: where it is, whose processor it uses, and what its cosine is multiplied by."""

    model: str
    processor: str
    scale: float | None  # None takes the model's own logit scale
    floor: float = -1.0  # cosines below it count as it


PUBLISHED = {
    "clipscore": Published("openai/clip-vit-large-patch14", "", 2.5, 0.0),  # Hessel et al. 2021, equation 1
    "pickscore": Published("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", None),
}


class Cosine:
    """r(x_0, c) = scale * max(cos(x_0, c), floor), by one of PUBLISHED or another checkpoint of its kind."""

    def __init__(self, config: RewardConfig) -> None:
        self.published = PUBLISHED[config.kind]
        processor = "" if config.model else self.published.processor
        self.clip = Clip(config.model or self.published.model, config.dtype, config.device, processor)

    @torch.no_grad()
    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float], dict[str, Any]]:
        """One number per image."""
        cosine_B = (self.clip.images(images) * self.clip.texts(prompts)).sum(1).clamp(min=self.published.floor)
        own = self.clip.model.logit_scale.exp().float()
        return (cosine_B * (own if self.published.scale is None else self.published.scale)).tolist(), {}
