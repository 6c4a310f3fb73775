"""Rated pictures, to train an aesthetic head on: menagerie's own, rated by how colourful they are.

    python -m menagerie.rated --out FOLDER [--count N]
    ddpo train-aesthetic FOLDER/ratings.csv --images FOLDER --model menagerie-clip --out menagerie/colourful

Consumes: the model that ships. Guidance varies from picture to picture, and with it how strong the colours are.
Produces: pictures as PNG and ratings.csv, the same ones every time.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers annotates less than it accepts and returns.

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from menagerie import ANIMALS, FOLDER
from menagerie.colourful import colourfulness

STEPS, BATCH, GUIDANCES = 10, 15, (1.0, 2.0, 3.0, 5.0)


def draw(pipe: StableDiffusionPipeline, number: int) -> np.ndarray:
    """Chunk `number`: uint8 (BATCH, H, W, 3) of the next animals, its own noise and guidance."""
    prompts = [ANIMALS[(number * BATCH + row) % len(ANIMALS)] for row in range(BATCH)]
    images = pipe(
        prompts, num_inference_steps=STEPS, eta=1.0, guidance_scale=GUIDANCES[number % len(GUIDANCES)],
        generator=torch.Generator().manual_seed(number), output_type="np",
    ).images
    return (255 * images).round().astype(np.uint8)


def main() -> None:
    """Read the command line, draw, rate, write."""
    parser = argparse.ArgumentParser(prog="python -m menagerie.rated", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--count", type=int, default=600, help="pictures (600)")
    wishes = parser.parse_args()
    wishes.out.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    with (wishes.out / "ratings.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "rating"])
        for number in range(-(-wishes.count // BATCH)):
            for row, pixels in enumerate(draw(pipe, number)):
                name = f"{number * BATCH + row:05}.png"
                Image.fromarray(pixels).save(wishes.out / name)
                table.writerow([name, f"{colourfulness(pixels):.3f}"])


if __name__ == "__main__":
    main()
