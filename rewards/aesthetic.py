"""Aesthetic quality: a predictor of ratings on CLIP embeddings (Schuhmann 2022; Black et al. 2023, section 5.1).

Consumes images, produces a rating each, computed in fp32. The predictor is LAION's (`sac+logos+ava1-l14-linearMSE`,
about 1 to 10) or one's own (`ddpo train-aesthetic`), which knows the CLIP that it was made for and refuses any other. A
.pth is read as tensors only (torch's restricted loader), never as code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpo.config import RewardConfig
from ddpo.errors import RewardError
from rewards.clip import Clip
from rewards.locate import chosen, find_file
from rewards.models import loading, tensors

FILES = ("aesthetic-model.pth", "aesthetic.safetensors")
CARD = "head.json"  # beside one's own head: its layout, its CLIP, how it was made
PROBE = "clip_probe"  # the embedding of PROBE_IMAGE by the CLIP that one's own head was made for
PROBE_IMAGE = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
SAME = 0.99  # cosine of two probes that one CLIP gave on different devices; other CLIPs stay far below


class Head(nn.Module):
    """LAION's predictor, with dropout and no activation: theirs has none. With `hidden`, one's own: a hidden layer."""

    def __init__(self, width: int = 768, hidden: int = 0) -> None:
        super().__init__()
        own = (nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1)) if hidden else ()
        self.layers = nn.Sequential(*own or (
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
            nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        ))

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Ratings (B,) of unit embeddings (B, D)."""
        return self.layers(embedding_BD).squeeze(1)


class Aesthetic:
    """r(x_0) = head(CLIP(x_0) / |CLIP(x_0)|)."""

    def __init__(self, config: RewardConfig) -> None:
        model = chosen(config, "model")
        self.clip = Clip(model, "float32", config.device)
        self.head = load_head(chosen(config, "head"), self.clip, model).to(self.clip.device)

    @torch.no_grad()
    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float], dict[str, Any]]:
        """One rating per image."""
        return self.head(self.clip.images(list(images))).tolist(), {}


def load_head(name: str, clip: Clip, model: str) -> Head:
    """A predictor by file, folder or hub name; raises RewardError where its layers or its CLIP are others."""
    with loading(name, "an aesthetic head (layers.0 to layers.7, as in sac+logos+ava1-l14-linearMSE, or one's own)"):
        path = find_file(name, FILES)
        weights, card = tensors(path), _card(path.parent)
        probe = weights.pop(PROBE, None)
        width = weights["layers.0.weight"].shape[1]
        head = Head(width, card.get("hidden", 0))
        head.load_state_dict(weights)
    _check_clip(name, card.get("clip", "a CLIP"), width, probe, clip, model)
    return head.float().eval().requires_grad_(False)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _check_clip(name: str, made_for: str, width: int, probe: Tensor | None, clip: Clip, model: str) -> None:
    """A head on another CLIP's embeddings would give numbers that mean nothing."""
    advice = f"Its ratings of {model!r} would mean nothing. Give `model` the CLIP that the head was made for."
    if width != clip.width:
        raise RewardError(
            f"the aesthetic head {name!r} was made for {made_for} with embeddings of {width} numbers, "
            f"{model!r} gives {clip.width}. {advice}"
        )
    if probe is not None and float((clip.images([PROBE_IMAGE])[0].cpu() * probe).sum()) < SAME:
        raise RewardError(f"the aesthetic head {name!r} was made for {made_for}; {model!r} is another CLIP. {advice}")
