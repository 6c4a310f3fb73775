"""How far pictures are from each other: what over-optimisation takes away, measured on pixels alone.

Consumes uint8 images, produces distances between 0 and 1, and fingerprints that are equal only for equal pixels; waits
for nothing. No torch, no network.

The distance of two images is the root mean square of their difference in [0, 1] after both were shrunk to 32 x 32 by
averaging: it sees layout, subject size and colour, and not fine texture or noise. It is the same for every base model
and needs no weights; distances of CLIP embeddings would see meaning as well, at the price of a model.

Shape letters: B images, Y X pixels, D = 32 * 32 * 3 numbers of a shrunk image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32


def diversity(images_BYX3: NDArray[np.uint8], prompts: Sequence[str]) -> float:
    """Mean distance of two images of one prompt, each prompt counted once; NaN where no prompt has two images."""
    spread_B, names = spread(images_BYX3, prompts), np.array(prompts)
    known = [spread_B[names == prompt].mean() for prompt in dict.fromkeys(prompts)]
    return float(np.mean([value for value in known if not np.isnan(value)] or [np.nan]))


def spread(images_BYX3: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
    """Mean distance of every image from the others of its prompt; NaN where it is the only one; (B,)."""
    small_BD, names = _shrunk(images_BYX3), np.array(prompts)
    found = np.full(len(small_BD), np.nan)
    for row, prompt in enumerate(prompts):
        others = names == prompt
        others[row] = False
        if others.any():
            found[row] = _length(small_BD[others] - small_BD[row]).mean()
    return found


def shift(images_BYX3: NDArray[np.uint8], base_BYX3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distance of every image from the one in its place, such as the base model's from the same noise; (B,)."""
    return _length(_shrunk(images_BYX3) - _shrunk(base_BYX3))


def fingerprints(images_BYX3: NDArray[np.uint8]) -> tuple[str, ...]:
    """sha256 over each image's pixels, row by row."""
    return tuple(hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in images_BYX3)


def _length(difference_BD: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt((difference_BD**2).mean(axis=1))


def _shrunk(images_BYX3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Every image as D numbers in [0, 1]; smaller images than 32 x 32 are enlarged."""
    small = [Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX) for pixels in images_BYX3]
    return np.stack([np.asarray(image, dtype=np.float64).reshape(-1) / 255 for image in small])
