"""Samples of the finished model, one seed per image, and sheets of them.

Consumes: a loaded `StableDiffusionPipeline` and prompts.
Produces: uint8 pictures (N, H, W, 3), and images of many tiles with their names.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers and transformers annotate less than they accept and return.

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw

STEPS, ETA, GUIDANCE = 50, 1.0, 5.0
TILE, CAPTION = 128, 16


def samples(pipe: StableDiffusionPipeline, prompts: list[str], seed: int, batch: int = 15) -> np.ndarray:
    """Draw one picture per prompt at 50 DDIM steps, eta 1, guidance 5; picture i has the seed `seed + i`."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    chunks = [range(at, min(at + batch, len(prompts))) for at in range(0, len(prompts), batch)]
    return np.concatenate([chunk(pipe, prompts, seed, rows) for rows in chunks])


def chunk(pipe: StableDiffusionPipeline, prompts: list[str], seed: int, rows: range) -> np.ndarray:
    """Draw the pictures of some of the prompts."""
    images = pipe(
        [prompts[row] for row in rows],
        num_inference_steps=STEPS,
        eta=ETA,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed + row) for row in rows],
        output_type="np",
    ).images
    return (255 * images).round().astype(np.uint8)


def sheet(pictures: np.ndarray, names: list[str], columns: int) -> Image.Image:
    """Lay pictures out in rows, twice as large, each above its name."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * TILE, rows * (TILE + CAPTION)), "white")
    pen = ImageDraw.Draw(page)
    for place, (pixels, name) in enumerate(zip(pictures, names, strict=True)):
        left, top = place % columns * TILE, place // columns * (TILE + CAPTION)
        page.paste(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + TILE / 2, top + TILE + CAPTION / 2), name, fill="black", anchor="mm")
    return page
