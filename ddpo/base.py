"""The base model's folder: where it is, and whether this program can train it, read from its JSON files alone.

Consumes a folder or hub name, produces `BaseModel`; waits for the hub's download where a name is given. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.errors import BaseModelError
from ddpo.source import ROOT

BUILT_IN = {"menagerie": ROOT / "menagerie" / "model"}
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class BaseModel:
    """A Stable Diffusion folder that can be trained.

    latent_CHW: shape of x_t; prediction: what the UNet predicts, "epsilon" or "v_prediction"
    """

    name: str
    folder: Path
    latent_CHW: tuple[int, int, int]
    image_size: int
    prediction: str

    @property
    def latent_size(self) -> int:
        """Number of latent dimensions N; log-probs are means over them, so the clip range's meaning hangs on it."""
        channels, height, width = self.latent_CHW
        return channels * height * width


def find(name: str) -> BaseModel:
    """Locate a model by built-in name, folder or hub name and check its kind; raises BaseModelError with the reason."""
    folder = BUILT_IN.get(name) or Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name)
    index = _json(folder, "model_index.json", name)
    scheduler = _json(folder, "scheduler/scheduler_config.json", name)
    _check_prediction(scheduler, name)
    _check_kind(index, name)
    _check_weights(folder, name)
    unet, vae, _ = (_json(folder, f"{part}/config.json", name) for part in WEIGHTS)
    return _describe(name, folder, unet, vae, scheduler)


def _describe(
    name: str, folder: Path, unet: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]
) -> BaseModel:
    try:
        side, channels = int(unet["sample_size"]), int(unet["in_channels"])
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
    except (KeyError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"policy.base: the size of {name}'s images cannot be read ({type(error).__name__}: {error}): unet/"
            "config.json needs whole numbers sample_size and in_channels, vae/config.json needs block_out_channels."
        ) from None
    prediction = scheduler.get("prediction_type", "epsilon")
    return BaseModel(name, folder, (channels, side, side), side * factor, prediction)


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BaseModelError(
            f"policy.base: there is no folder {name!r}. Give a folder in diffusers' layout, a hub name like "
            f'"stable-diffusion-v1-5/stable-diffusion-v1-5", or one that ships here: {", ".join(BUILT_IN)}.'
        )
    from huggingface_hub import snapshot_download

    wanted = [pattern for part in PARTS for pattern in (f"{part}/*.json", f"{part}/*.txt")]
    wanted += [f"{part}/*.safetensors" for part in WEIGHTS] + ["model_index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*.fp16.*", "*non_ema*"]))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model cannot be had
        raise BaseModelError(
            f"policy.base: {name!r} is no folder here, and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name and the network, or download it and give the folder."
        ) from error


def _json(folder: Path, file: str, name: str) -> dict[str, Any]:
    try:
        table = json.loads((folder / file).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BaseModelError(
            f"policy.base: {name} is not a diffusers model: {folder / file} is missing. A model folder holds "
            f"model_index.json and {', '.join(PARTS)}; convert single-file checkpoints with diffusers first."
        ) from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"policy.base: {folder / file} cannot be read: {error}.") from None
    if not isinstance(table, dict):
        kind = type(table).__name__
        raise BaseModelError(f"policy.base: {folder / file} is damaged: it holds no table but a {kind}.")
    return table


def _check_kind(index: dict[str, Any], name: str) -> None:
    kind = index.get("_class_name", "unknown")
    if kind != "StableDiffusionPipeline":
        raise BaseModelError(
            f"policy.base: {name} is a {kind}; this version trains StableDiffusionPipeline (SD 1.x, 2.x) only."
        )


def _check_prediction(scheduler: dict[str, Any], name: str) -> None:
    prediction, kind = scheduler.get("prediction_type", "epsilon"), str(scheduler.get("_class_name"))
    if "Flow" in kind or "flow" in str(prediction) or scheduler.get("use_flow_sigmas"):
        raise BaseModelError(
            f"policy.base: {name} is a flow-matching model (its scheduler is {kind}, prediction type: flow). DDPO's "
            "policy is the DDIM step of a model that predicts epsilon or v; a flow model under it draws noise, and its "
            "log-probs mean nothing. Use a Stable Diffusion 1.x or 2.x model, or a flow-matching trainer such as "
            "flow_grpo."
        )
    if prediction not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f'policy.base: {name} has prediction_type "{prediction}"; the policy is defined for "epsilon" and '
            '"v_prediction".'
        )


def _check_weights(folder: Path, name: str) -> None:
    missing = [part for part in WEIGHTS if not any((folder / part).glob("*model.safetensors*"))]  # one, or an index
    if not missing:
        return
    reason = "The folder is not complete"
    if any(file for part in missing for file in [*(folder / part).glob("*.bin"), *(folder / part).glob("*.ckpt")]):
        reason = "Pickled weights (.bin) are not loaded, since they can run code"
    elif any(file for part in missing for file in (folder / part).glob("*.safetensors")):
        reason = "Variants (such as .fp16.safetensors) are not looked for"
    raise BaseModelError(
        f"policy.base: {name} has no safetensors weights for {', '.join(missing)}. {reason}: load the whole model once "
        "in diffusers and save_pretrained() it, or download it again."
    )
