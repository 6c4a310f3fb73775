"""Export: the trained parts become a folder that `StableDiffusionPipeline.from_pretrained` loads.

Consumes: the frozen autoencoder, the averaged denoiser and the tokenizer.
Produces: the folder; weights in half precision, which both libraries load as float32.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers and transformers annotate less than they accept and return.

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from menagerie.denoiser import Denoiser, scheduler


def export(vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the pipeline beside the old folder, then swap; pictures and a card that are there stay."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(fresh)
    write_vocabulary(tokenizer, fresh / "tokenizer")
    declare_float32(fresh / "text_encoder" / "config.json")
    swap(fresh, folder)


def write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt beside tokenizer.json, for readers older than transformers 5."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def declare_float32(path: Path) -> None:
    """Name float32 in a config, for transformers loads weights in the type that the config names."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def swap(fresh: Path, folder: Path) -> None:
    """Put the fresh folder in the old one's place, keeping files of the old one's top level."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        for kept in (path for path in folder.iterdir() if path.is_file() and not (fresh / path.name).exists()):
            shutil.copy2(kept, fresh / kept.name)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
