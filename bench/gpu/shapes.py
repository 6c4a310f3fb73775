"""Stable Diffusion 1.5, 2.1 and XL as configs alone, and their networks on the pretended GPU, without weights.

Consumes a folder, produces model folders of a few kB in it, and a learner and a sampler that hold such a network; waits
for nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from actors.prompts import Draw, source
from bench.gpu.measure import RECIPE
from bench.gpu.models import SCHEDULER, published
from bench.gpu.pretend import NAME
from ddpo.base import BUILT_IN, BaseModel, find
from ddpo.config import Run
from ddpo.runfile import load
from ddpo.types import Trajectory
from learner.learner import Learner

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPEN_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
          "hidden_act": "gelu", "projection_dim": 512}
OPEN_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "hidden_act": "gelu", "projection_dim": 1280}
TEXTS = {"sd15": [CLIP_L], "sd21": [OPEN_H], "sdxl": [CLIP_L, OPEN_G]}
PREDICTION = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}


def describe(folder: Path, name: str) -> Path:
    """A folder with everything of a model but its weights: of "sd15", "sd21" or "sdxl"."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    is_xl, unet = name == "sdxl", published(name)
    decoder: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "sample_size": 8 * unet["sample_size"],
        "force_upcast": is_xl,
    }
    with torch.device("meta"):
        UNet2DConditionModel(**unet).save_config(folder / "unet")
        AutoencoderKL(**decoder).save_config(folder / "vae")
    ids = json.loads((BUILT_IN["menagerie"] / "text_encoder" / "config.json").read_text())
    numbers: dict[str, Any] = {key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for number, size in zip(("", "_2"), TEXTS[name], strict=False):
        shutil.copytree(BUILT_IN["menagerie"] / "tokenizer", folder / f"tokenizer{number}")
        settings = folder / f"tokenizer{number}" / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 77}))
        facts: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77, **numbers, **size}
        CLIPTextConfig(**facts).save_pretrained(folder / f"text_encoder{number}")
    (folder / "scheduler").mkdir()
    schedule = json.dumps(SCHEDULER | {"prediction_type": PREDICTION[name]})
    (folder / "scheduler" / "scheduler_config.json").write_text(schedule)
    kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


def run_of(folder: Path, *overrides: str) -> tuple[Run, BaseModel]:
    """The paper's run on such a folder, on the pretended GPU."""
    run = load(RECIPE, [f"policy.base={folder}", "prompts.kind=simple_animals", *overrides])
    return replace(run, policy=replace(run.policy, device=NAME)), find(run.policy.base, weights=False)


def of_images(count: int) -> list[str]:
    """Overrides for a step of so many images in one chunk, one update and one micro-batch."""
    return [f"{key}={count}" for key in ("actors.batch", "learner.images_per_step", "learner.minibatch",
                                         "learner.micro_batch")]


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks are made of their configs instead of being loaded, for the block."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def made(kind: Any, folder: str, subfolder: str = "", output_loading_info: bool = False, **options: Any) -> Any:
        with torch.device("meta"):
            if hasattr(kind, "load_config"):
                network = kind.from_config(kind.load_config(folder, subfolder=subfolder))
            else:
                network = kind(CLIPTextConfig.from_pretrained(folder))
        dtype = options["torch_dtype"] if "torch_dtype" in options else options["dtype"]
        network = torch.nn.Module.to(network, dtype).to_empty(device=NAME).eval()
        return (network, {"missing_keys": []}) if output_loading_info else network

    with ExitStack() as stack:
        for kind in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection):
            stack.enter_context(mock.patch.object(kind, "from_pretrained", partial(made, kind)))
        yield


def trajectory(run: Run, base: BaseModel, learner: Learner, count: int) -> Trajectory:
    """One of `count` images with all of its states, drawn by the learner's policy: zeros."""
    prompts, steps, policy = Draw(run, source(run.prompts))(0).chunks(count)[0], run.policy.steps, learner.policy()
    timesteps_T = learner.denoiser.schedule.timesteps_T.cpu().numpy()
    text = [json.loads((base.folder / part / "config.json").read_text()) for part in ("text_encoder", "text_encoder_2")
            if (base.folder / part).is_dir()]
    width, pooled = sum(one["hidden_size"] for one in text), text[1]["projection_dim"] if len(text) > 1 else 0
    zeros = np.zeros((count, 77, width), np.float32)
    return Trajectory(
        prompts.ids, policy.version, policy.digest, timesteps_T, np.ones((count, steps + 1), bool),
        np.zeros((count * (steps + 1), *base.latent_CHW), np.float32), np.zeros((count, steps), np.float32), zeros,
        zeros[0], np.zeros((count, pooled), np.float32), np.zeros(pooled, np.float32),
    )
