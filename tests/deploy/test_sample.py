"""The tuned model in diffusers' pipeline, of folders as the hub has them: what the program does not need may lack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.prompts import fixed, plain
from actors.sampler import Sampler
from actors.text import TextEncoder
from ddpo.base import BaseModel, find
from ddpo.config import Run
from ddpo.denoiser import Denoiser
from ddpo.errors import BaseModelError
from ddpo.weights import pack
from deploy import sample
from learner import lora

CHECKER = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
PICTURES = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
INDEXES = {  # what model_index.json says of parts that are not there, by who published it so
    "SD 1.5": {**CHECKER, **PICTURES},
    "SD 1.4, older": {**CHECKER, "feature_extractor": ["transformers", "CLIPFeatureExtractor"]},
    "SD 1, checked": {**CHECKER, **PICTURES, "requires_safety_checker": True},
    "tiny copies": {**CHECKER, **PICTURES, "requires_safety_checker": False},
    "SD 2.1": {"safety_checker": [None, None], **PICTURES},
    "sd-turbo": {"safety_checker": [None, None]},
    "IP adapter": {**PICTURES, "image_encoder": ["transformers", "CLIPVisionModelWithProjection"]},
    "SDXL": {"feature_extractor": [None, None], "image_encoder": [None, None], "add_watermarker": None},
    "bare": {},
}
SCHEDULERS = ("PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler")


@pytest.fixture
def on(make_run: Callable[..., Run], architectures: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """on("SDXL", index): the small run on a tiny model whose model_index.json says that, and moved LoRA weights."""

    def make(name: str, index: dict[str, Any], *overrides: str) -> tuple[Run, BaseModel, Path]:
        folder = shutil.copytree(architectures[name], tmp_path / "model", dirs_exist_ok=True)
        said = json.loads((folder / "model_index.json").read_text())
        rest = {key: value for key, value in said.items() if "safety" not in key and key != "feature_extractor"}
        (folder / "model_index.json").write_text(json.dumps(rest | index))
        run = make_run(f"policy.base={folder}", *overrides)
        base, drawn = find(str(folder)), np.random.default_rng(0)
        start = Denoiser(base, run.policy, 0).weights()
        weights = {name: (w + 0.1 * drawn.normal(size=w.shape)).astype(np.float32) for name, w in start.items()}
        lora.save(weights, run.policy, base, tmp_path)
        return run, base, tmp_path

    return make


def pixels(run: Run, base: BaseModel, folder: Path) -> np.ndarray:
    pipe = sample.pipeline(folder, run, base)
    return sample.draw(pipe, base, ["a cat", "a dog"], [3, 4], run.policy.guidance, 3, 1.0)


@pytest.mark.parametrize("name", ["SD 1", "SD 2", "SDXL"])
def test_parts_that_a_folder_names_and_has_not_do_not_matter(on, name):
    pictures = [pixels(*on(name, index)) for index in INDEXES.values()]
    assert pictures[0].shape == (2, 16, 16, 3) and np.isfinite(pictures[0]).all()
    assert len({picture.tobytes() for picture in pictures}) == 1


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", ["SD 2", "SDXL"])
def test_whatever_the_scheduler_the_picture_is_the_samplers(on, name, kind):
    index = INDEXES["SD 1.5"] | {"scheduler": ["diffusers", kind]}
    _, base, _ = on(name, index)
    file = base.folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": kind}))
    run, base, folder = on(name, index)
    prompts = fixed(plain(["a cat"]), 3)
    drawn = Sampler(run, base).sample(prompts, pack(_weights(folder), 0))[0].pixels_BYX3
    theirs = plain_diffusers.draw(sample.pipeline(folder, run, base), base, run.policy, "a cat", prompts.seeds[0])
    assert np.abs(drawn - theirs).max() <= 1


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """What was saved, under the UNet's own names."""
    return {name.removeprefix("unet.").replace(".weight", ".default.weight"): weight.numpy()
            for name, weight in load_file(folder / lora.LORA_FILE).items()}


@pytest.mark.parametrize(("dtype", "place", "expected"), [
    ("float16", "cuda", "float16"), ("bfloat16", "cuda", "bfloat16"), ("float32", "cuda", "float32"),
    ("float16", "cpu", "float32"), ("float32", "cpu", "float32"),
])
def test_pictures_are_drawn_in_the_runs_precision_and_on_a_cpu_in_float32(dtype, place, expected):
    assert sample.precision(dtype, place) == expected


@pytest.mark.filterwarnings("ignore:.*float16.*")
@pytest.mark.parametrize(("name", "vae"), [("SD 1", torch.float16), ("SDXL", torch.float32)])
def test_in_half_precision_an_autoencoder_that_overflows_stays_in_fp32(on, name, vae, monkeypatch):
    run, base, folder = on(name, INDEXES["bare"], "policy.dtype=float16")
    whole = pixels(run, base, folder)
    monkeypatch.setattr(sample, "precision", lambda dtype, place: dtype)
    pipe = sample.pipeline(folder, run, base)
    assert (pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (torch.float16, torch.float16, vae)
    assert sample.draw(pipe, base, ["a cat"], [3], 5.0, 3, 1.0).shape == whole[:1].shape


PARTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors", "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_that_lacks_is_an_error_and_not_drawn_at_random(on, part):
    run, base, folder = on("SD 1", {})
    file = base.folder / PARTS[part]
    weights = load_file(file)
    lacking = next(name for name in weights if name.endswith((".conv_in.weight", "q_proj.weight", "conv_in.weight")))
    save_file({name: weight for name, weight in weights.items() if name != lacking}, file, {"format": "pt"})
    with pytest.raises(BaseModelError, match=f"1 of its weights are not there, {lacking} for one"):
        sample.pipeline(folder, run, base)
    trained = {"unet": lambda: Denoiser(base, run.policy, 0), "vae": lambda: Sampler(run, base),
               "text_encoder": lambda: TextEncoder(base, run.policy)}[part]
    with pytest.raises(BaseModelError, match="1 of its weights are not there"):
        trained()
