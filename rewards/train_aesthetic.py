"""`ddpo train-aesthetic`: an aesthetic head of one's own, from ratings of images.

Consumes ratings, images and a frozen CLIP; produces a folder that kind = "aesthetic" takes as its head; waits for the
embeddings, once.

The seed and the files' names divide the images in three: on the largest part the head learns, the second chooses the
epoch, and on the third, which neither has seen, the reported correlation is measured.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpo.errors import InputError
from rewards.aesthetic import CARD, PROBE, Head
from rewards.clip import Clip
from rewards.embeddings import Embeddings
from rewards.ratings import listed, read_ratings

SHARE = 0.15  # of the images, for the choice of the epoch and again for the report
FEWEST = 40  # images; with less the held-out part says nothing
BATCH = 64


@dataclass(frozen=True)
class Recipe:
    """How a head is trained."""

    hidden: int = 64
    epochs: int = 200
    rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class HeldOut:
    """How a head does on images that it was neither trained nor chosen on."""

    images: int
    pearson: float
    spearman: float
    mse: float
    constant_mse: float  # of the predictor that always says the training images' mean rating


@dataclass(frozen=True)
class Result:
    """A trained head and its account."""

    folder: Path
    images: int
    epoch: int
    held_out: HeldOut


def train_head(ratings: Path, images: Path, model: str, out: Path, recipe: Recipe, device: str = "auto",
               skip: bool = False, say: Callable[[str], None] = print) -> Result:
    """Train a head and save it; raises InputError where ratings or images cannot be used (unless `skip` leaves out)."""
    rated = _present(read_ratings(ratings), images, skip, say)
    _check(list(rated.values()), ratings)
    clip = Clip(model, "float32", device)
    store = Embeddings(clip, out / "embeddings.safetensors")
    rows = store.embedded([images / name for name in rated], lambda left: say(f"{left} images to embed"))
    _complain("no image", [name for name in rated if images / name not in rows], images, skip, say)
    names = [name for name in rated if images / name in rows]
    truth_N = np.array([rated[name] for name in names])
    _check(truth_N.tolist(), ratings)
    inputs_ND, parts = torch.stack([rows[images / name] for name in names]), split(names, recipe.seed)
    head, epoch = fit(inputs_ND, torch.tensor(truth_N, dtype=torch.float32), parts, recipe)
    held_out = measure(head, inputs_ND, truth_N, parts)
    _save(head, store.probe, out, {"clip": model, "width": clip.width, "ratings": ratings.name, "images": len(names),
                                   **asdict(recipe), "epoch": epoch, "held_out": asdict(held_out)})
    return Result(out, len(names), epoch, held_out)


def _present(rated: Mapping[str, float], images: Path, skip: bool, say: Callable[[str], None]) -> dict[str, float]:
    missing = [name for name in rated if not (images / name).is_file()]
    _complain("missing", missing, images, skip, say)
    gone = set(missing)
    return {name: rating for name, rating in rated.items() if name not in gone}


def _complain(what: str, names: list[str], images: Path, skip: bool, say: Callable[[str], None]) -> None:
    text = f"{what}: {listed(names, 'rated file')} in {images}."
    if names and not skip:
        raise InputError(f"{text} Mend that, or go on without them with --skip.")
    if names:
        say(f"Left out, {text}")


def _check(rated: list[float], ratings: Path) -> None:
    if len(rated) < FEWEST:
        raise InputError(f"{ratings}: {len(rated)} rated images are too few to train on some and test on others; "
                         f"give {FEWEST} or more.")
    if min(rated) == max(rated):
        raise InputError(f"{ratings}: every image is rated {rated[0]:g}, so there is nothing to learn.")


def split(names: list[str], seed: int) -> dict[str, list[int]]:
    """Rows of the training, choosing and testing part; a name's place in the order hangs on it and the seed alone."""
    order = sorted(range(len(names)), key=lambda row: hashlib.sha256(f"{seed} {names[row]}".encode()).digest())
    part = round(SHARE * len(names))
    return {"test": order[:part], "choose": order[part : 2 * part], "train": order[2 * part :]}


def fit(inputs_ND: Tensor, truth_N: Tensor, parts: Mapping[str, list[int]], recipe: Recipe) -> tuple[Head, int]:
    """The head of the epoch that does best on the choosing part, and that epoch."""
    torch.manual_seed(recipe.seed)
    mine_ND, mine_N = inputs_ND[parts["train"]], truth_N[parts["train"]]
    centre_D, scale, mean, spread = mine_ND.mean(0), mine_ND.std().clamp(min=1e-6), mine_N.mean(), mine_N.std()
    head = Head(inputs_ND.shape[1], recipe.hidden)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    scaled_ND, scaled_N = (inputs_ND - centre_D) / scale, (truth_N - mean) / spread
    best, kept, at = float("inf"), head.state_dict(), 0
    for epoch in range(1, recipe.epochs + 1):
        _epoch(head, optimizer, scaled_ND[parts["train"]], scaled_N[parts["train"]])
        error = _error(head, scaled_ND[parts["choose"]], scaled_N[parts["choose"]])
        if error < best:
            best, kept, at = error, copy.deepcopy(head.state_dict()), epoch
    head.load_state_dict(kept)
    _fold(head, centre_D, scale, mean, spread)
    return head.eval(), at


def _epoch(head: Head, optimizer: torch.optim.Optimizer, inputs_ND: Tensor, truth_N: Tensor) -> None:
    head.train()
    for rows in torch.randperm(len(truth_N)).split(BATCH):
        loss = nn.functional.mse_loss(head(inputs_ND[rows]), truth_N[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _error(head: Head, inputs_ND: Tensor, truth_N: Tensor) -> float:
    return nn.functional.mse_loss(head.eval()(inputs_ND), truth_N).item()


@torch.no_grad()
def _fold(head: Head, centre_D: Tensor, scale: Tensor, mean: Tensor, spread: Tensor) -> None:
    """Put the scales of inputs and ratings into the first and last layer, so that the head takes plain embeddings."""
    first, last = (layer for layer in (head.layers[0], head.layers[-1]) if isinstance(layer, nn.Linear))
    first.weight.div_(scale)
    first.bias.sub_(first.weight @ centre_D)
    last.weight.mul_(spread)
    last.bias.mul_(spread).add_(mean)


@torch.no_grad()
def measure(head: Head, inputs_ND: Tensor, truth_N: NDArray[np.float64], parts: Mapping[str, list[int]]) -> HeldOut:
    """Correlations and mean squared error on the testing part, beside those of a constant."""
    said_N, right_N = head(inputs_ND[parts["test"]]).double().numpy(), truth_N[parts["test"]]
    constant = truth_N[parts["train"]].mean()
    return HeldOut(
        len(right_N), correlation(said_N, right_N), correlation(_ranks(said_N), _ranks(right_N)),
        float(((said_N - right_N) ** 2).mean()), float(((constant - right_N) ** 2).mean()),
    )


def correlation(one_N: NDArray[np.float64], other_N: NDArray[np.float64]) -> float:
    """Pearson's r; 0 where one of the two does not vary."""
    one_N, other_N = one_N - one_N.mean(), other_N - other_N.mean()
    size = float(np.sqrt((one_N @ one_N) * (other_N @ other_N)))
    return float(one_N @ other_N) / size if size else 0.0


def _ranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, the mean one for equals: Pearson's r of these is Spearman's."""
    _, places, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def _save(head: Head, probe: Tensor, out: Path, card: dict[str, Any]) -> None:
    save_file({**head.state_dict(), PROBE: probe}, out / "aesthetic.safetensors")
    (out / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
