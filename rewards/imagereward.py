"""ImageReward (Xu et al. 2023): a BLIP that reads the prompt while it looks, and a head that says how well they go.

Consumes images and prompts, produces one number per image, standardised as published; waits for nothing but the load.
The published checkpoint is mapped to transformers' BLIP, since the package image-reward cannot be imported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpo.config import RewardConfig
from ddpo.device import place
from rewards.aesthetic import Head
from rewards.locate import IMAGEREWARD_FILE, chosen, find_file, locate
from rewards.models import dtype_of, loading, tensors

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the head's output over the authors' training set
TOKENS = 35  # a prompt is cut here
HEAD_WIDTH = 64  # features of one attention head, in both towers
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks": "encoder.layers",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
}


class ImageReward:
    """r(x_0, c) = (head(BLIP(x_0, c)) - mean) / deviation."""

    def __init__(self, config: RewardConfig) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil

        model, self.device = chosen(config, "model"), place(config.device)
        with loading(model, f"ImageReward ({IMAGEREWARD_FILE} as its authors published it, and BERT's tokenizer)"):
            weights = tensors(find_file(model, (IMAGEREWARD_FILE,)))
            self.vision, self.text, self.head = _vision(weights), _text(weights), _head(weights)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(locate(chosen(config, "processor")))
        for part in (self.vision, self.text):
            part.to(self.device, dtype_of(config.dtype, self.device)).eval().requires_grad_(False)
        self.head.to(self.device).eval().requires_grad_(False)
        side = self.vision.config.image_size
        self.pictures: Any = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @torch.no_grad()
    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float], dict[str, Any]]:
        """One number per image."""
        pixels = self.pictures(images=[Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
        seen = self.vision(pixel_values=pixels.to(self.device, self.vision.dtype)).last_hidden_state
        words = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        read = self.text(words.input_ids, words.attention_mask, encoder_hidden_states=seen).last_hidden_state
        return ((self.head(read[:, 0].float()) - MEAN) / DEVIATION).tolist(), {}


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}


def _layers(part: dict[str, Tensor], before: str) -> int:
    return 1 + max(int(name.removeprefix(before).split(".")[0]) for name in part if name.startswith(before))


def _vision(weights: dict[str, Tensor]) -> Any:
    """The tower that looks, of the size that its weights have."""
    from transformers import BlipVisionConfig, BlipVisionModel

    part = _part(weights, "blip.visual_encoder.")
    width, _, patch, _ = part["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width, intermediate_size=len(part["blocks.0.mlp.fc1.bias"]), patch_size=patch,
        num_hidden_layers=_layers(part, "blocks."), num_attention_heads=width // HEAD_WIDTH, layer_norm_eps=1e-6,
        image_size=patch * round((part["pos_embed"].shape[1] - 1) ** 0.5), hidden_act="gelu",
    )
    model = BlipVisionModel(config)
    model.load_state_dict({_vision_name(name): value for name, value in part.items()})
    return model


def _vision_name(name: str) -> str:
    if name.startswith("norm."):
        return f"post_layer{name}"
    for old, new in VISION.items():
        name = name.replace(old, new)
    return name


def _text(weights: dict[str, Tensor]) -> Any:
    """The tower that reads and, between its layers, looks at what the other one saw."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    part = _part(weights, "blip.text_encoder.")
    part.pop("embeddings.position_ids", None)  # no weight, only 0, 1, 2, ...
    words, width = part["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=len(part["encoder.layer.0.intermediate.dense.bias"]),
        num_hidden_layers=_layers(part, "encoder.layer."), num_attention_heads=width // HEAD_WIDTH, hidden_act="gelu",
        encoder_hidden_size=part["encoder.layer.0.crossattention.self.key.weight"].shape[1], layer_norm_eps=1e-12,
        max_position_embeddings=len(part["embeddings.position_embeddings.weight"]), is_decoder=True, use_cache=False,
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    model.load_state_dict(part)
    return model


def _head(weights: dict[str, Tensor]) -> Head:
    part = _part(weights, "mlp.")
    head = Head(part["layers.0.weight"].shape[1])
    head.load_state_dict(part)
    return head
