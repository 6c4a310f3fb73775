"""OpenCLIP's names of weights, in transformers' words: the same network under two sets of names.

Consumes an OpenCLIP state dict (HPSv2 is published as one), produces CLIPModel's; waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
}
INSIDE = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
          "attn.out_proj": "self_attn.out_proj"}
BLOCKS = "transformer.resblocks."


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every weight under its name in CLIPModel, fp32; one that it does not know keeps its own, and is refused there."""
    return {new: value.float() for name, weight in weights.items() for new, value in _one(name, weight)}


def _one(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    tower, rest = ("vision_model", name.removeprefix("visual.")) if name.startswith("visual.") else ("text_model", name)
    if name == "visual.proj":
        yield "visual_projection.weight", weight.T
    elif name == "text_projection":
        yield "text_projection.weight", weight.T
    elif rest.startswith(BLOCKS):
        number, part = rest.removeprefix(BLOCKS).split(".", 1)
        for inner, value in _block(part, weight):
            yield f"{tower}.encoder.layers.{number}.{inner}", value
    else:
        stem, dot, last = rest.rpartition(".")
        known = NAMES.get(rest) or (stem in NAMES and f"{NAMES[stem]}{dot}{last}")
        yield (f"{tower}.{known}" if known else name), weight


def _block(part: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    stem, _, last = part.rpartition(".")
    if part.startswith("attn.in_proj_"):
        for letter, third in zip("qkv", torch.chunk(weight, 3), strict=True):
            yield f"self_attn.{letter}_proj.{part.removeprefix('attn.in_proj_')}", third
    else:
        yield f"{INSIDE.get(stem, stem)}.{last}", weight
