"""Models of the published sizes with random weights, in diffusers' layout: no weights travel to a GPU.

Consumes a folder, produces model folders in it; waits for nothing. What needs a trained model takes menagerie.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measure import Bench
from ddpo.base import BUILT_IN
from ddpo.source import ROOT

SCHEDULER = {
    "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True,
    "clip_sample": False,
}
DOWN, UP = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
FOLDERS = {"sd15": "stable-diffusion-1", "sd21": "stable-diffusion-2-1", "sdxl": "stable-diffusion-xl"}


def published(name: str) -> dict[str, Any]:
    """The UNet's config of "sd15", "sd21" or "sdxl", from the descriptions that ship for `ddpo plan`."""
    path = ROOT / "ddpo" / "descriptions" / FOLDERS[name] / "unet" / "config.json"
    return {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}


SMALL: dict[str, Any] = {
    "sample_size": 16, "norm_num_groups": 8, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32,
    "attention_head_dim": 4, "down_block_types": DOWN, "up_block_types": UP,
}


def build(bench: Bench) -> None:
    """The folder `sd15`: a UNet of 859,520,964 parameters, an autoencoder for 512 pixels, CLIP's encoder, in fp16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder, dtype = bench.model(), torch.float32 if bench.dry else torch.float16
    with bench.device:
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel(**SMALL if bench.dry else published("sd15"))
        decoder: dict[str, Any] = {
            "block_out_channels": (32, 32, 32, 32) if bench.dry else (128, 256, 512, 512), "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
            "sample_size": 128 if bench.dry else 512,
        }
        vae: Any = AutoencoderKL(**decoder)
    bench.say("parameters of the UNet", sum(weight.numel() for weight in unet.parameters()), "", "859520964")
    unet.to(dtype).save_pretrained(folder / "unet")
    vae.to(dtype).save_pretrained(folder / "vae")
    _text(bench, folder, dtype)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [None, None],
             "feature_extractor": [None, None], "requires_safety_checker": False}
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", **parts}
    (folder / "model_index.json").write_text(json.dumps(index))


def _text(bench: Bench, folder: Path, dtype: torch.dtype) -> None:
    """CLIP ViT-L's text encoder behind menagerie's tokenizer, whose few tokens it reads as 77."""
    from transformers import CLIPTextConfig, CLIPTextModel

    shutil.copytree(BUILT_IN["menagerie"] / "tokenizer", folder / "tokenizer")
    settings = folder / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 77}))
    told = json.loads((BUILT_IN["menagerie"] / "text_encoder" / "config.json").read_text())
    ids: dict[str, Any] = {name: told[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size: dict[str, Any] = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    }
    if bench.dry:
        size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with bench.device:
        encoder: Any = CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **ids, **size))
    encoder.to(dtype).save_pretrained(folder / "text_encoder")


def perturb(denoiser: Any, spread: float = 1e-3) -> None:
    """Give LoRA's B matrices numbers as training would: at their start of 0, A has no gradient."""
    generator = torch.Generator().manual_seed(1)
    weights = denoiser.weights()
    denoiser.load_weights({
        name: array + (spread * torch.randn(array.shape, generator=generator)).numpy() if "lora_B" in name else array
        for name, array in weights.items()
    })
