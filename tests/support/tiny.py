"""A random Stable Diffusion of a few thousand parameters, in diffusers' layout: real classes, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
    "prediction_type": "epsilon",
}


def make(folder: Path, prediction: str = "epsilon", set_alpha_to_one: bool = False) -> Path:
    """Write the model; the same folder every time, since the weights come from a fixed seed."""
    torch.manual_seed(7)
    _unet().save_pretrained(folder / "unet")
    _vae().save_pretrained(folder / "vae")
    _text(folder)
    scheduler = {**SD_SCHEDULER, "prediction_type": prediction, "set_alpha_to_one": set_alpha_to_one}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _text(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "tokenizer" / "vocab.json"), merges=str(folder / "tokenizer" / "merges.txt"),
        model_max_length=24,
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    size = len(tokens)
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=24, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def run(model: Path) -> dict[str, Any]:
    """A run of two steps: 8 images in chunks of 4, 5 denoising steps, two updates a step."""
    return {
        "name": "small",
        "steps": 2,
        "policy": {"base": str(model), "steps": 5},
        "prompts": {"kind": "list", "items": ["a cat", "a dog"]},
        "actors": {"count": 1, "batch": 4},
        "rewards": {"jpeg": {"kind": "compressibility"}},
        "advantage": {"min_count": 4},
        "learner": {"images_per_step": 8, "minibatch": 4, "micro_batch": 4, "lr": 1e-3},
        "images": {"count": 2},
        "checkpoints": {"every": 1, "keep": 5},
    }
