"""The judge: a small classifier that names the animal and the activity in a picture.

Consumes: composed pictures and their prompts (to train); any uint8 pictures (to classify).
Produces: `FOLDER/judge.safetensors`, and through `classify` and `activities` one name per picture.

Shapes: B pictures, C channels, H height, W width.
"""

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from menagerie import ACTIVITIES, ANIMALS
from menagerie.loop import descend, loop, place, rate, set_rate

FOLDER = Path(__file__).parent / "judge"
WIDTHS = (24, 48, 96, 128)
BATCH = 64
RATE = 3e-3
NOTHING = "nothing"
DEEDS = (NOTHING, *ACTIVITIES)


class Judge(nn.Module):
    """Four strided stages, a mean over the picture, one linear layer for the animal and one for the activity."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(stage(*pair) for pair in zip((3, *WIDTHS), WIDTHS, strict=False)))
        self.animal = nn.Linear(WIDTHS[-1], len(ANIMALS))
        self.deed = nn.Linear(WIDTHS[-1], len(DEEDS))

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the animals and of the activities."""
        features = self.stages(images_BCHW).mean((2, 3))
        return self.animal(features), self.deed(features)


def stage(inner: int, outer: int) -> nn.Sequential:
    """Halve the picture and look twice."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.SiLU(),
        nn.Conv2d(outer, outer, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(outer),
        nn.SiLU(),
    )


def train(pictures: np.ndarray, prompts: list[str], steps: int, device: str, checkpoint: Path) -> Judge:
    """Fit the judge to uint8 (N, H, W, C) pictures, each time shifted, blurred and speckled anew."""
    torch.manual_seed(0)
    judge = Judge().to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.02)
    animals, deeds = (targets.to(device) for targets in labels(prompts))
    for step in loop(checkpoint, steps, {"judge": judge, "optimizer": optimizer}):
        set_rate(optimizer, rate(step, steps, RATE))
        rows = torch.randint(len(pictures), (BATCH // place()[1],))
        named, done = judge(disturb(as_images(pictures[rows.numpy()], device)))
        value = F.cross_entropy(named, animals[rows]) + 0.5 * F.cross_entropy(done, deeds[rows])
        descend(judge, optimizer, value)
        if step % 100 == 0:
            print(f"judge {step}/{steps} loss {value.item():.4f}", flush=True)
    return judge.eval()


def labels(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read each prompt's animal and activity as indices into ANIMALS and DEEDS."""
    words = [prompt.split() for prompt in prompts]
    animals = [next(ANIMALS.index(word) for word in some if word in ANIMALS) for some in words]
    verbs = {activity.split()[0]: place for place, activity in enumerate(DEEDS)}
    deeds = [max(verbs.get(word, 0) for word in some) for some in words]
    return torch.tensor(animals), torch.tensor(deeds)


def as_images(pixels: np.ndarray, device: str) -> torch.Tensor:
    """Turn uint8 (B, H, W, C) into float (B, C, H, W) in -1..1."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def disturb(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Shift by up to four pixels, blur half of the batches, add noise: a sample is never as clean as a drawing."""
    down, right = torch.randint(-4, 5, (2,)).tolist()
    moved = torch.roll(images_BCHW, (down, right), (2, 3))
    if torch.rand(()) < 0.5:
        moved = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return moved + 0.15 * torch.rand(()).item() * torch.randn_like(moved)


def save(judge: Judge, folder: Path) -> None:
    """Store the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu() for name, value in judge.state_dict().items() if value.is_floating_point()}
    save_file({name: value.half().contiguous() for name, value in weights.items()}, folder / "judge.safetensors")


@functools.cache
def load(folder: Path = FOLDER) -> Judge:
    """Load the judge that ships with the model, in single precision."""
    judge = Judge()
    stored = {name: value.float() for name, value in load_file(folder / "judge.safetensors").items()}
    judge.load_state_dict(judge.state_dict() | stored)
    return judge.eval().requires_grad_(False)


def classify(images: np.ndarray) -> list[str]:
    """Name the animal in each of uint8 (N, 64, 64, 3) pictures."""
    return [ANIMALS[place] for place in logits(load(), images)[0].argmax(1).tolist()]


def activities(images: np.ndarray) -> list[str]:
    """Name the activity in each of uint8 (N, 64, 64, 3) pictures, or "nothing"."""
    return [DEEDS[place] for place in logits(load(), images)[1].argmax(1).tolist()]


@torch.no_grad()
def logits(judge: Judge, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Look at uint8 (N, H, W, C) pictures in batches; logits of animals and of activities."""
    device = str(next(judge.parameters()).device)
    looks = [judge(as_images(images[at : at + 256], device)) for at in range(0, len(images), 256)]
    animals, deeds = zip(*looks, strict=True)
    return torch.cat(animals), torch.cat(deeds)


def accuracy(judge: Judge, images: np.ndarray, prompts: list[str]) -> tuple[float, float]:
    """Measure which shares of the pictures the judge names as their prompts do: animals, activities."""
    looks = zip(logits(judge, images), labels(prompts), strict=True)
    animals, deeds = ((look.argmax(1).cpu() == truth).float().mean().item() for look, truth in looks)
    return animals, deeds
