"""`ddpo sample`: draw pictures with a checkpoint, through diffusers' own pipeline, as any other program would.

Consumes a checkpoint or run folder and prompts, produces PNG files.

Shape letters: B images, C H W latent, Y X pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpo.base import SDXL, TEXT_PARTS, BaseModel, find
from ddpo.config import Run
from ddpo.errors import BaseModelError, CheckpointError, InputError
from ddpo.runfile import parse
from deploy.folder import write
from deploy.train import latest_checkpoint
from learner import checkpoint

WITHOUT = {  # what a pipeline would do to the picture after the model, and the networks that it would load for it
    "StableDiffusionPipeline": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    SDXL: {"add_watermarker": False},
}


def sample(path: Path, prompts: list[str], out: Path, seed: int, count: int, steps: int | None) -> list[Path]:
    """Draw `count` images of every prompt and return the files; the DDIM settings are those of the run."""
    from actors.text import check_lengths

    folder = latest_checkpoint(path)
    run = run_of(folder, [])
    base = find(run.policy.base)
    check_lengths(prompts, base)
    _make(out)
    pipe = pipeline(folder, run, base)
    files = []
    for prompt in prompts:
        for number in range(seed, seed + count):
            (pixels,) = draw(
                pipe, base, [prompt], [number], run.policy.guidance, steps or run.policy.steps, run.policy.eta
            )
            files.append(_save(pixels, prompt, out, number))
    return files


def run_of(folder: Path, overrides: list[str]) -> Run:
    """The run that a checkpoint is of, changed by `table.key=value` overrides; raises CheckpointError, ConfigError."""
    try:
        return parse(checkpoint.read_state(folder).get("run", {}), overrides, str(folder))
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {folder}: {error}") from None


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made: {error.strerror}. Give another folder.") from None


def pipeline(folder: Path, run: Run, base: BaseModel) -> Any:
    """The tuned model as a diffusers pipeline with DDIM, on the run's device; raises BaseModelError.

    It is put together of the parts that are trained with. `from_pretrained` would load all that model_index.json names,
    such as a safety checker: those are not downloaded, and older indexes name classes that transformers has no more.
    """
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler
    from diffusers.utils.logging import disable_progress_bar

    from actors.text import load_encoder, load_tokenizers
    from ddpo.backends import set_backends
    from ddpo.device import place

    disable_progress_bar()
    device = place(run.policy.device)
    set_backends(run.gpu)
    dtype = precision(run.policy.dtype, device.type)
    names = TEXT_PARTS[base.pipeline]
    parts: dict[str, Any] = {name: part for (name, _), part in zip(names, load_tokenizers(base), strict=True)}
    parts |= {part: load_encoder(base, part, dtype) for _, part in names}
    parts["unet"] = unet(base, folder if run.policy.train == "full" else base.folder, dtype)
    parts["vae"] = load(base, AutoencoderKL, base.folder, "vae", base.vae_dtype(dtype))
    zeros = {"force_zeros_for_empty_prompt": base.zero_null} if base.pipeline == SDXL else {}
    pipe: Any = getattr(diffusers, base.pipeline)(**parts, scheduler=None, **zeros, **WITHOUT[base.pipeline])
    # Set afterwards: the pipeline would change the steps_offset of an older model, which was trained with its own.
    facts: Any = DDIMScheduler.load_config(str(base.folder), subfolder="scheduler")
    pipe.scheduler = DDIMScheduler.from_config(facts, clip_sample=False)
    if base.pipeline == SDXL:
        pipe.vae.enable_slicing()  # a whole batch of 1,024 pixels takes more memory than the UNet
    if run.policy.train == "lora":
        pipe.load_lora_weights(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def precision(dtype: str, place: str) -> str:
    """Of the networks: the run's own; on a CPU float32, since it computes nothing faster in another one."""
    return "float32" if place == "cpu" else dtype


def unet(base: BaseModel, folder: Path, dtype: str) -> Any:
    """The base's UNet or, from a checkpoint's folder, a fully trained one; raises BaseModelError."""
    from diffusers import UNet2DConditionModel

    return load(base, UNet2DConditionModel, folder, "unet", dtype)


def load(base: BaseModel, kind: Any, folder: Path, part: str, dtype: str) -> Any:
    """One of diffusers' networks; raises BaseModelError."""
    from ddpo.denoiser import DTYPES
    from ddpo.pretrained import whole

    try:
        return whole(kind, str(folder), subfolder=part, torch_dtype=DTYPES[dtype])
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"{folder / part} cannot be loaded as a part of {base.name}: {error}") from error


def draw(
    pipe: Any, base: BaseModel, text: Sequence[str], seeds: Sequence[int], guidance: float, steps: int, eta: float
) -> NDArray[np.float32]:
    """Images (B, Y, X, 3) in [0, 1], each from its own seed; the autoencoder may be of another precision."""
    import torch

    latents_BCHW = pipe(
        list(text), height=base.image_size, width=base.image_size, num_inference_steps=steps, guidance_scale=guidance,
        eta=eta, generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent",
    ).images
    with torch.no_grad():
        scaled = (latents_BCHW / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)
        decoded = pipe.vae.decode(scaled, return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="np")


def _save(pixels_YX3: NDArray[np.float32], prompt: str, out: Path, seed: int) -> Path:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((pixels_YX3 * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    name = "".join(letter if letter.isalnum() else "-" for letter in prompt)[:60].strip("-") or "image"
    path = out / f"{name}-{seed}.png"
    try:
        write(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written: {error.strerror}.") from None
    return path
