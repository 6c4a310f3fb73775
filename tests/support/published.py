"""Tiny random weights in the layouts in which ImageReward and HPSv2 are published, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import seeing
import torch
from torch import Tensor

from menagerie import tokenizer

VISION, TEXT, POSITIONS = 128, 64, 40  # ImageReward's widths here; two attention heads and one
CLIP, INNER = 16, 32  # HPSv2's widths here, as those of seeing.clip


def draw(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A tensor per name, each from a generator of its own; scales of layer norms are near one."""
    drawn = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        values = np.random.default_rng((seed, number)).normal(0, spread, shape)
        norm = name.endswith("weight") and len(shape) == 1
        drawn[name] = torch.tensor(values, dtype=torch.float32) + norm
    return drawn


def imagereward(folder: Path) -> Path:
    """ImageReward.pt and BERT's tokenizer."""
    folder.mkdir()
    torch.save(imagereward_weights(), folder / "ImageReward.pt")
    seeing.words(model_max_length=POSITIONS).save_pretrained(folder)
    return folder


def imagereward_weights() -> dict[str, Tensor]:
    """A vision tower of two layers for 32 pixels, a text tower of two layers, the head, and what is there unused."""
    see, read, ratings = "blip.visual_encoder", "blip.text_encoder", (TEXT, 1024, 128, 64, 16, 1)
    shapes: dict[str, tuple[int, ...]] = {
        f"{see}.cls_token": (1, 1, VISION), f"{see}.pos_embed": (1, 17, VISION),
        f"{see}.patch_embed.proj.weight": (VISION, 3, 8, 8), f"{see}.patch_embed.proj.bias": (VISION,),
        f"{read}.embeddings.word_embeddings.weight": (len(seeing.WORDS), TEXT),
        f"{read}.embeddings.position_embeddings.weight": (POSITIONS, TEXT),
        "blip.vision_proj.weight": (8, VISION), "blip.vision_proj.bias": (8,),
        **_norm(f"{see}.norm", VISION), **_norm(f"{read}.embeddings.LayerNorm", TEXT),
    }
    for layer in range(2):
        block, bert = f"{see}.blocks.{layer}", f"{read}.encoder.layer.{layer}"
        shapes |= _norm(f"{block}.norm1", VISION) | _norm(f"{block}.norm2", VISION)
        shapes |= _linear(f"{block}.attn.qkv", VISION, 3 * VISION) | _linear(f"{block}.attn.proj", VISION, VISION)
        shapes |= _linear(f"{block}.mlp.fc1", VISION, 2 * VISION) | _linear(f"{block}.mlp.fc2", 2 * VISION, VISION)
        for name, width in (("attention", TEXT), ("crossattention", VISION)):
            shapes |= _linear(f"{bert}.{name}.self.query", TEXT, TEXT) | _norm(f"{bert}.{name}.output.LayerNorm", TEXT)
            shapes |= _linear(f"{bert}.{name}.self.key", width, TEXT)
            shapes |= _linear(f"{bert}.{name}.self.value", width, TEXT)
            shapes |= _linear(f"{bert}.{name}.output.dense", TEXT, TEXT)
        shapes |= _linear(f"{bert}.intermediate.dense", TEXT, 2 * TEXT) | _norm(f"{bert}.output.LayerNorm", TEXT)
        shapes |= _linear(f"{bert}.output.dense", 2 * TEXT, TEXT)
    for number, place in enumerate((0, 2, 4, 6, 7)):
        shapes |= _linear(f"mlp.layers.{place}", ratings[number], ratings[number + 1])
    return draw(shapes, 1) | {f"{read}.embeddings.position_ids": torch.arange(POSITIONS)[None]}


def hpsv2(folder: Path) -> Path:
    """HPS_v2.1_compressed.pt, with configuration and processor beside it."""
    seeing.clip(folder, activation="gelu")
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": open_clip_weights()}, folder / "HPS_v2.1_compressed.pt")
    return folder


def open_clip_weights() -> dict[str, Tensor]:
    """A CLIP of 32 pixels and one layer a tower, under OpenCLIP's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (CLIP,), "visual.conv1.weight": (CLIP, 3, 8, 8), "visual.proj": (CLIP, CLIP),
        "visual.positional_embedding": (17, CLIP), "positional_embedding": (tokenizer.LENGTH, CLIP),
        "token_embedding.weight": (len(tokenizer.build()), CLIP), "text_projection": (CLIP, CLIP), "logit_scale": (),
        **_norm("visual.ln_pre", CLIP), **_norm("visual.ln_post", CLIP), **_norm("ln_final", CLIP),
    }
    for block in ("visual.transformer.resblocks.0", "transformer.resblocks.0"):
        shapes |= _norm(f"{block}.ln_1", CLIP) | _norm(f"{block}.ln_2", CLIP)
        shapes |= _linear(f"{block}.mlp.c_fc", CLIP, INNER)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * CLIP, CLIP), f"{block}.attn.in_proj_bias": (3 * CLIP,)}
        shapes |= _linear(f"{block}.attn.out_proj", CLIP, CLIP) | _linear(f"{block}.mlp.c_proj", INNER, CLIP)
    return draw(shapes, 2)


def _linear(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def pictures(height: int, width: int) -> np.ndarray:
    """Two uint8 (height, width, 3) pictures."""
    return np.random.default_rng(9).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


PROMPTS = ["a cat riding a bike", "the image contains a dog"]
