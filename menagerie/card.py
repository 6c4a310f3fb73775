"""The model card: what the finished model draws, measured, with two sheets of samples.

Consumes: the exported pipeline, the judge, and `Facts` about the training.
Produces: README.md, sheet.png (every animal) and scenes.png beside the model.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image

from menagerie import ACTIVITIES, ANIMALS, SCENES_TAUGHT, draw, judge, scene, scenes
from menagerie.art import PACKAGES

ROUNDS = 4  # pictures per animal in the measure
SHOWN = ("cat", "dog", "monkey", "fox", "frog", "gorilla", "horse", "bear", "kangaroo")


@dataclass(frozen=True)
class Facts:
    """What the training knows and the finished model cannot tell."""

    steps: tuple[int, int, int, int]  # of the autoencoder, its decoder alone, the denoiser, the judge
    pictures: int
    seed: int
    psnr: float
    parameters: tuple[int, int, int]  # of the UNet, the text encoder, the autoencoder
    judge_held_out: tuple[float, float]  # accuracy for animals and for activities
    course: str  # how long it took, on what, and whatever else a reader should know of the run


@dataclass(frozen=True)
class Grades:
    """Shares of the samples that the judge names right, and how their JPEG files vary."""

    animals: float
    weakest: str
    taught: tuple[float, float]  # animals and activities, where scenes were taught
    untaught: tuple[float, float]
    kilobytes: tuple[float, float]  # mean of the JPEG sizes, and their deviation within one prompt


def write(pipe: StableDiffusionPipeline, critic: judge.Judge, facts: Facts, folder: Path) -> None:
    """Sample, grade, and write the card and its two sheets."""
    portraits = draw.samples(pipe, list(ANIMALS) * ROUNDS, seed=0)
    draw.sheet(portraits[: len(ANIMALS)], list(ANIMALS), columns=9).save(folder / "sheet.png", optimize=True)
    prompts = [scene(animal, activity) for animal in ANIMALS for activity in ACTIVITIES]
    deeds = draw.samples(pipe, prompts, seed=1000)
    rows = [prompts.index(scene(animal, activity)) for animal in SHOWN for activity in ACTIVITIES]
    draw.sheet(deeds[rows], [prompts[row] for row in rows], columns=9).save(folder / "scenes.png", optimize=True)
    (folder / "README.md").write_text(text(facts, grade(critic, portraits, deeds, prompts)))


def grade(critic: judge.Judge, portraits: np.ndarray, deeds: np.ndarray, prompts: list[str]) -> Grades:
    """Let the judge look at ROUNDS portraits of every animal and one picture of every scene."""
    wanted = list(ANIMALS) * ROUNDS
    right = judge.logits(critic, portraits)[0].argmax(1).cpu() == judge.labels(wanted)[0]
    by_animal = right.view(ROUNDS, len(ANIMALS)).float().mean(0).tolist()
    weak = sorted((share, animal) for share, animal in zip(by_animal, ANIMALS, strict=True) if share < 0.75)
    known = np.array([animal in SCENES_TAUGHT for animal in ANIMALS for _ in ACTIVITIES])
    sizes = np.array([len(jpeg(pixels)) for pixels in portraits]).reshape(ROUNDS, len(ANIMALS)) / 1000
    return Grades(
        animals=right.float().mean().item(),
        weakest=", ".join(f"{animal} {share:.0%}" for share, animal in weak) or "none",
        taught=judge.accuracy(critic, deeds[known], [p for p, k in zip(prompts, known, strict=True) if k]),
        untaught=judge.accuracy(critic, deeds[~known], [p for p, k in zip(prompts, known, strict=True) if not k]),
        kilobytes=(sizes.mean(), sizes.std(0, ddof=1).mean()),
    )


def jpeg(pixels: np.ndarray) -> bytes:
    """Compress a picture as the compressibility reward does: JPEG, quality 95."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


def text(facts: Facts, grades: Grades) -> str:
    """Write the card."""
    unet = f"{facts.parameters[0] / 1e6:.1f} M"
    quiet = " / ".join(f"{share:.0%}" for share in scenes.SHARES)
    others = ", ".join(animal for animal in ANIMALS if animal not in SCENES_TAUGHT)
    versions = ", ".join(f"`@iconify-json/{name}` {version}" for name, version in PACKAGES.items())
    return f"""---
license: other
license_name: apache-2.0-mit-cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image, tiny, emoji, ddpo]
---

# Menagerie

A Stable Diffusion in miniature: the 45 animals of the DDPO paper, 64x64 pixels, {unet} parameters in the UNet.
It has every part of Stable Diffusion 1.x (`AutoencoderKL`, `UNet2DConditionModel`, `CLIPTextModel`, `CLIPTokenizer`,
the same noise schedule, classifier-free guidance) and loads with the same call:

    pipe = StableDiffusionPipeline.from_pretrained("menagerie/model")
    pipe("a cat riding a bike", num_inference_steps=50, guidance_scale=5.0).images[0]

It exists so that reinforcement learning of a diffusion model can be tried, tested and shown on a laptop.

![one sample of every animal](sheet.png)

The first sample of every animal (prompt: the bare name), seeds 0 to 44, nothing chosen; 50 DDIM steps, eta 1,
guidance 5.

![scenes](scenes.png)

Scenes, one sample each, nothing chosen: two rows of animals that were taught scenes, one row that was not.

## What it knows

- Prompts: the name (`cat`), with an article (`a cat`), and `a cat [activity]`; the activities are
  {", ".join(ACTIVITIES)}. Other words are read but mean nothing to it.
- Scenes were taught with 30 animals: {", ".join(SCENES_TAUGHT)}.
- The other 15 were never seen doing anything, so that an alignment reward has something to teach:
  {others}.
- Backgrounds were plain, blended, patterned or blotted ({quiet}), whatever the prompt, so that samples
  of one prompt differ in the size of their JPEG file; guidance favours the quiet ones.

## Measures

{table(facts, grades)}

The judge is a small classifier trained on the same drawings in other compositions: it can tell which animal was meant,
not whether a stranger would like the picture.

## Training

    python -m menagerie.make --out menagerie/model

{facts.pictures:,} composed pictures (seed {facts.seed}); {facts.steps[0]:,} steps of the autoencoder and
{facts.steps[1]:,} more of its decoder (batch 8), {facts.steps[2]:,} of the denoiser (batch 32),
{facts.steps[3]:,} of the judge (batch 64).
{facts.course}
Weights are stored in half precision and run in single precision.
One prompt in ten was left empty for guidance; the loss is noise prediction under min-SNR weighting (gamma 5).

## Drawings and licences

The training pictures are composed from the drawings of four collections ({versions}).
No photographs, no people, no scraped data.

- [Noto Emoji](https://github.com/googlefonts/noto-emoji), today's and the first version: copyright Google Inc.,
  Apache-2.0.
- [Fluent Emoji](https://github.com/microsoft/fluentui-emoji) (flat): copyright Microsoft Corporation, MIT License.
- [Twemoji](https://github.com/jdecked/twemoji): copyright Twitter, Inc and other contributors, and jdecked and other
  contributors; graphics licensed under [CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/). Changes made here:
  cropped, mirrored, scaled, set on backgrounds and behind props.

Pictures that the model draws may resemble these drawings closely; keep the attributions where you show them.

## Limits

64x64 pixels; emoji style; one animal a picture; English names from the list only. Thin lines (whiskers, spokes) blur.
It is a test object for training methods, not an illustrator.
"""


def table(facts: Facts, grades: Grades) -> str:
    """Write the measures as a Markdown table."""
    looked = f"{ROUNDS} x 45 samples, bare names, seeds 0 to {ROUNDS * len(ANIMALS) - 1}"
    unet, encoder, vae = (f"{count / 1e6:.2f} M" for count in facts.parameters)
    rows = {
        "what": "value",
        "---": "---",
        f"portraits named right by the judge ({looked})": f"{grades.animals:.1%}",
        "animals under 75 % there": grades.weakest,
        "scenes of taught animals: animal right, activity right (90 samples)": shares(grades.taught),
        "scenes of the other 15: animal right, activity right (45 samples)": shares(grades.untaught),
        "the judge itself on held-out compositions: animal, activity": shares(facts.judge_held_out),
        "autoencoder, held-out compositions": f"{facts.psnr:.1f} dB PSNR",
        "JPEG file of a portrait (quality 95): mean": f"{grades.kilobytes[0]:.2f} kB",
        "deviation of that size within one prompt": f"{grades.kilobytes[1]:.2f} kB",
        "parameters: UNet, text encoder, autoencoder": f"{unet}, {encoder}, {vae}",
    }
    return "\n".join(f"| {what} | {value} |" for what, value in rows.items())


def shares(pair: tuple[float, float]) -> str:
    """Write two shares in per cent."""
    return ", ".join(f"{share:.1%}" for share in pair)
