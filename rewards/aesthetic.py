"""Aesthetic quality: the LAION predictor on CLIP ViT-L/14 embeddings (Schuhmann 2022; Black et al. 2023, section 5.1).

Consumes images, produces a rating of about 1 to 10 each, computed in fp32. The head is a file or hub repository with
the layers of `sac+logos+ava1-l14-linearMSE`; a .pth is read as tensors only (torch's restricted loader), never as code.
"""

from __future__ import annotations

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
from rewards.locate import locate
from rewards.models import loading

CLIP = "openai/clip-vit-large-patch14"
HEAD = "trl-lib/ddpo-aesthetic-predictor"
FILES = ("aesthetic.safetensors", "aesthetic-model.pth")


class Head(nn.Module):
    """The LAION predictor: 768 -> 1024 -> 128 -> 64 -> 16 -> 1 with dropout, and no activation: theirs has none."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
            nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Ratings (B,) of unit embeddings (B, D)."""
        return self.layers(embedding_BD).squeeze(1)


class Aesthetic:
    """r(x_0) = head(CLIP(x_0) / |CLIP(x_0)|)."""

    def __init__(self, config: RewardConfig) -> None:
        self.clip = Clip(config.model or CLIP, "float32", config.device)
        self.head = load_head(config.head or HEAD, self.clip.width).to(self.clip.device)

    @torch.no_grad()
    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float], dict[str, Any]]:
        """One rating per image."""
        return self.head(self.clip.images(images)).tolist(), {}


def load_head(name: str, width: int) -> Head:
    """A predictor by file, folder or hub name; raises RewardError where its layers are others."""
    with loading(name, "an aesthetic head (layers.0 to layers.7, as in sac+logos+ava1-l14-linearMSE)"):
        weights = _tensors(_file(name))
        head = Head(width)
        head.load_state_dict(weights)
    return head.float().eval().requires_grad_(False)


def _file(name: str) -> Path:
    path = Path(locate(name))
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / file for file in FILES if (path / file).is_file()]
        if found:
            return found[0]
        raise RewardError(f"rewards: the folder {name} holds no aesthetic head ({' or '.join(FILES)}).")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, FILES[1]))


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
