"""JPEG compressibility and incompressibility: the file size in kB at quality 95 (Black et al. 2023, section 5.1)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 95


def kilobytes(pixels_YX3: NDArray[np.uint8]) -> float:
    """Size of one image as JPEG, in units of 1,000 bytes as in ddpo-pytorch."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_YX3).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000


def incompressibility(
    images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
) -> tuple[list[float], dict[str, Any]]:
    """r = size in kB: detail and noise score high."""
    return [kilobytes(image) for image in images], {}


def compressibility(
    images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
) -> tuple[list[float], dict[str, Any]]:
    """r = -size in kB: plain pictures score high."""
    return [-kilobytes(image) for image in images], {}
