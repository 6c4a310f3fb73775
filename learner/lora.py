"""Trained weights on disk, as plain diffusers loads them.

LoRA: `pipe.load_lora_weights(folder)`; fully trained: `UNet2DConditionModel.from_pretrained(folder)`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ddpo.base import BaseModel
from ddpo.config import PolicyConfig

LORA_FILE = "pytorch_lora_weights.safetensors"
UNET_FOLDER = "unet"


def save(weights: dict[str, NDArray[Any]], config: PolicyConfig, base: BaseModel, folder: Path) -> None:
    """Write the trainable weights; names are the UNet's own parameter names."""
    if config.train == "full":
        _save_unet(weights, base, folder / UNET_FOLDER)
        return
    renamed = {"unet." + _diffusers_name(name): np.ascontiguousarray(array) for name, array in weights.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(_adapter(config))}
    save_file(renamed, folder / LORA_FILE, metadata)


def _diffusers_name(name: str) -> str:
    """peft's parameter name as diffusers' LoRA files spell it."""
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def _adapter(config: PolicyConfig) -> dict[str, Any]:
    """Rank, alpha and targets for diffusers, which otherwise takes alpha = rank."""
    return {
        "unet.r": config.lora_rank, "unet.lora_alpha": config.lora_alpha, "unet.target_modules": config.lora_targets,
        "unet.lora_dropout": 0.0, "unet.bias": "none", "unet.peft_type": "LORA",
    }


def _save_unet(weights: dict[str, NDArray[Any]], base: BaseModel, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((base.folder / "unet" / "config.json").read_text())
    save_file(
        {name: np.ascontiguousarray(array) for name, array in weights.items()},
        folder / "diffusion_pytorch_model.safetensors",
        {"format": "pt"},
    )
