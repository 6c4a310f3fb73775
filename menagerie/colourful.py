"""A reward of one's own: how colourful is an image? (Hasler & Suesstrunk 2003, equation of M3.)

    [rewards.colourful]
    kind = "function"
    path = "menagerie/colourful.py"
    weight = 0

Consumes uint8 (B, height, width, 3) images; produces M = sigma + 0.3 mu of the opponent colours red - green and
yellow - blue: 0 for grey, about 109 for the most colourful photographs of the authors' study.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def reward(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[list[float], dict[str, Any]]:
    """The colourfulness of each image."""
    return [colourfulness(image) for image in images], {}


def colourfulness(image: np.ndarray) -> float:
    """M3 of one image (height, width, 3)."""
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, -1)
    spread, mean = np.linalg.norm(opponents.std(1)), np.linalg.norm(opponents.mean(1))
    return float(spread + 0.3 * mean)
