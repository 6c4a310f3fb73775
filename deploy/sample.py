"""`ddpo sample`: draw pictures with a checkpoint, through plain diffusers, as any other program would.

Consumes a checkpoint or run folder and prompts, produces PNG files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddpo.base import SDXL, BaseModel, find
from ddpo.config import Run
from ddpo.errors import BaseModelError, CheckpointError, InputError
from ddpo.runfile import parse
from deploy.folder import write
from deploy.train import latest_checkpoint
from learner import checkpoint

WITHOUT = {  # what a pipeline would do to the picture after the model
    "StableDiffusionPipeline": {"safety_checker": None},
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
    return [
        _draw(pipe, prompt, out, seed + number, run, steps) for prompt in prompts for number in range(count)
    ]


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
    """The tuned model as a diffusers pipeline with DDIM, on the device of the run; raises BaseModelError."""
    import diffusers
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusers.utils.logging import disable_progress_bar

    from ddpo.device import place
    from learner.lora import UNET_FOLDER

    disable_progress_bar()
    try:
        pipe = getattr(diffusers, base.pipeline).from_pretrained(
            base.folder, use_safetensors=True, **WITHOUT[base.pipeline]
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"policy.base: {base.name} cannot be loaded: {error}") from error
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    if run.policy.train == "full":
        pipe.unet = UNet2DConditionModel.from_pretrained(folder, subfolder=UNET_FOLDER)
    else:
        pipe.load_lora_weights(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place(run.policy.device), torch.float32)


def _draw(pipe: Any, prompt: str, out: Path, seed: int, run: Run, steps: int | None) -> Path:
    import io

    import torch

    image = pipe(
        prompt, num_inference_steps=steps or run.policy.steps, guidance_scale=run.policy.guidance, eta=run.policy.eta,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    name = "".join(letter if letter.isalnum() else "-" for letter in prompt)[:60].strip("-") or "image"
    path = out / f"{name}-{seed}.png"
    try:
        write(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written: {error.strerror}.") from None
    return path
