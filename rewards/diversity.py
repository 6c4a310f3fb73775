"""Diversity: how far an image is from the others of its prompt; what over-optimisation takes away first.

Consumes images and prompts, produces each image's mean distance (0 to 1, see ddpo.pictures) from the other images of
its prompt in the same chunk. An image alone with its prompt has no score, so it is for watching (weight = 0), or for
runs whose prompts.repeat puts several images of a prompt into each chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpo.pictures import spread

ALONE = "no other image of its prompt in the chunk"


def diversity(
    images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
) -> tuple[list[float | None], dict[str, Any]]:
    """Mean distance or None per image; info: why there is none."""
    values = [None if np.isnan(value) else float(value) for value in spread(images, prompts)]
    return values, {"missing": [ALONE if value is None else None for value in values]}
