"""The recipe: `python -m menagerie.make --out DIR` draws, trains, exports, grades and writes the card.

Consumes: drawings (fetched with npm, or `--art`), nothing else.
Produces: the model folder DIR with its card and sheets, and the judge's weights in `DIR/../judge`.
Waits for: npm, once. `torchrun --nproc-per-node 2 -m menagerie.make ...` shares every batch between two processes;
stopped with SIGTERM, the same command continues from the checkpoints in `--work`.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# diffusers and transformers annotate less than they accept and return.

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, StableDiffusionPipeline

from menagerie import ANIMALS, art, autoencoder, card, denoiser, judge, scenes, tokenizer
from menagerie.export import export
from menagerie.loop import place

PICTURES = 48_000
JUDGED = 24_000
HELD_OUT = 1_000
SEED = 100
AUTOENCODER_STEPS = 2_500
POLISH_STEPS = 2_000
DENOISER_STEPS = 15_700
JUDGE_STEPS = 2_000


def main() -> None:
    """Read the command line and make the model."""
    parser = argparse.ArgumentParser(prog="python -m menagerie.make", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--art", type=Path, help="a folder that holds the packages (named @iconify-json)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "menagerie", help="checkpoints, art")
    wishes = parser.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    make(wishes.out, art.load(wishes.art or art.fetch(wishes.work / "art")), wishes.work, wishes.device)


def make(out: Path, drawings: art.Art, work: Path, device: str) -> None:
    """Train the models on this process's share of the pictures; the first process exports and grades."""
    rank, ranks = place()
    began = time.monotonic()
    pictures, prompts = scenes.pool(drawings, PICTURES // ranks, SEED + rank)
    vae = autoencoder.train(pictures, AUTOENCODER_STEPS, device, work / "autoencoder.pt")
    words = tokenizer.build()
    autoencoder.polish(vae, pictures, POLISH_STEPS, device, work / "polish.pt")
    latents = vae.config.scaling_factor * autoencoder.encode(vae, pictures)
    average = denoiser.train(latents, prompts, words, DENOISER_STEPS, device, work / "denoiser.pt")
    everything = scenes.pool(drawings, JUDGED // ranks, SEED + 10 + rank, ANIMALS)  # taught or not
    critic = judge.train(*everything, JUDGE_STEPS, device, work / "judge.pt")
    if rank:
        return
    judge.save(critic, out.parent / "judge")
    export(vae, average, words, out)
    held, held_prompts = scenes.pool(drawings, HELD_OUT, SEED - 1, ANIMALS)
    machine = f"{torch.get_num_threads() * ranks} CPU cores" if device == "cpu" else device
    course = f"It took {(time.monotonic() - began) / 60:.0f} minutes on {machine}."
    grade(out, vae, critic, (held, held_prompts), course)


def grade(out: Path, vae: AutoencoderKL, critic: judge.Judge, held: tuple[np.ndarray, list[str]], course: str) -> None:
    """Measure the exported model on held-out pictures and samples; write the card and the sheets beside it."""
    pipe = StableDiffusionPipeline.from_pretrained(out).to(vae.device)
    facts = card.Facts(
        steps=(AUTOENCODER_STEPS, POLISH_STEPS, DENOISER_STEPS, JUDGE_STEPS),
        pictures=PICTURES,
        seed=SEED,
        psnr=autoencoder.psnr(vae.float(), held[0]),
        parameters=tuple(
            sum(p.numel() for p in part.parameters()) for part in (pipe.unet, pipe.text_encoder, pipe.vae)
        ),
        judge_held_out=judge.accuracy(critic, *held),
        course=course,
    )
    card.write(pipe, critic, facts, out)


if __name__ == "__main__":
    main()
