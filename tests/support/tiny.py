"""Random Stable Diffusions of a few thousand parameters, in diffusers' layout: real classes, no download."""

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


SDXL_SCHEDULER = SD_SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "leading",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "sample_max_value": 1.0,
    "clip_sample": False,
}
PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
SAFETY = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}


def make(folder: Path) -> Path:
    """SD 1; the same folder every time, since the weights come from a fixed seed."""
    torch.manual_seed(7)
    _unet().save_pretrained(folder / "unet")
    _vae().save_pretrained(folder / "vae")
    _text(folder)
    return _index(folder, SD_SCHEDULER, {"_class_name": "StableDiffusionPipeline", **SAFETY})


def make_wide(folder: Path, channels: int) -> Path:
    """SD 1 whose latents have so many channels: 16 x 16 of them cost bytes and next to no time."""
    torch.manual_seed(7)
    _unet(sample_size=16, in_channels=channels, out_channels=channels).save_pretrained(folder / "unet")
    _vae(latent_channels=channels).save_pretrained(folder / "vae")
    _text(folder)
    return _index(folder, SD_SCHEDULER, {"_class_name": "StableDiffusionPipeline", **SAFETY})


def make_2(folder: Path, **schedule: object) -> Path:
    """SD 2: OpenCLIP's text encoder, heads counted a block, linear projections, v-prediction."""
    torch.manual_seed(8)
    unet = {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}
    _unet(**unet).save_pretrained(folder / "unet")
    _vae().save_pretrained(folder / "vae")
    _text(folder, pad="!", hidden_act="gelu", num_hidden_layers=2, projection_dim=8)
    facts = SD_SCHEDULER | {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
    return _index(folder, facts | schedule, {"_class_name": "StableDiffusionPipeline", **SAFETY})


def make_xl(folder: Path, **index: object) -> Path:
    """SDXL: two text encoders of different widths, pooled text and image size as further conditions."""
    torch.manual_seed(9)
    unet = {
        "attention_head_dim": [2, 4], "use_linear_projection": True, "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": 16 + 24, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 6 * 8,
    }
    _unet(**unet).save_pretrained(folder / "unet")
    _vae(scaling_factor=0.13025, force_upcast=True).save_pretrained(folder / "vae")
    _text(folder, num_hidden_layers=2)
    _text(folder, "_2", pad="!", hidden_act="gelu", num_hidden_layers=2, hidden_size=24, projection_dim=12)
    second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": PARTS["tokenizer"]}
    facts = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **second, **index}
    return _index(folder, SDXL_SCHEDULER, facts)


def _index(folder: Path, schedule: dict[str, Any], facts: dict[str, Any]) -> Path:
    """Write the scheduler and model_index.json."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    index = {"_diffusers_version": "0.42.1", **PARTS, "scheduler": ["diffusers", schedule["_class_name"]], **facts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _unet(**changes: Any) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    facts: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**facts | changes)


def _vae(**changes: Any) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    facts: dict[str, Any] = {
        "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**facts | changes)


def _text(folder: Path, number: str = "", pad: str = "<|endoftext|>", **changes: Any) -> None:
    """tokenizer{number} and text_encoder{number}; the second one has a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    place = folder / f"tokenizer{number}"
    place.mkdir(parents=True)
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(place / "vocab.json"), merges=str(place / "merges.txt"), model_max_length=24, pad_token=pad
    )
    tokenizer.save_pretrained(place)
    size = len(tokens)
    facts = {
        "vocab_size": size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 24, "bos_token_id": size - 2, "eos_token_id": size - 1,
        "pad_token_id": vocabulary[pad],
    }
    kind = CLIPTextModelWithProjection if number else CLIPTextModel
    kind(CLIPTextConfig(**facts | changes)).save_pretrained(folder / f"text_encoder{number}")


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
