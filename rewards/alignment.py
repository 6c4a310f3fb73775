"""Prompt-image alignment: describe the image, compare the description with the prompt (Black et al. 2023, section 5.1).

Consumes images and prompts, produces BERTScore recall of the description against "The image contains {prompt}", with
the caption, precision and F1 beside it. An image whose description stays empty gets no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpo.config import RewardConfig
from rewards.compare import Comparer
from rewards.describe import Describer
from rewards.locate import chosen

QUESTION = "Answer concisely: what is going on in this image?"  # as in ddpo-pytorch
REFERENCE = "The image contains {prompt}"
SILENT = "the description was empty, asked twice"


class Alignment:
    """r(x_0, c) = BERTScore recall(description of x_0, reference of c)."""

    def __init__(self, config: RewardConfig) -> None:
        self.question = config.question or QUESTION
        self.describer = Describer(chosen(config, "model"), config.max_tokens, config.dtype, config.device)
        self.comparer = Comparer(chosen(config, "compare"), config.layer, config.device)

    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float | None], dict[str, Any]]:
        """Recall or None per image; info: caption, precision, f1, and why there is no score."""
        captions = self.describer.ask(images, [self.question] * len(images))
        told = [row for row, caption in enumerate(captions) if caption]
        references = [REFERENCE.replace("{prompt}", prompts[row]) for row in told]
        columns = self.comparer.compare([captions[row] for row in told], references)
        precision, recall, f1 = (_spread(column, told, len(captions)) for column in columns)
        missing = [None if caption else SILENT for caption in captions]
        return recall, {"caption": captions, "precision": precision, "f1": f1, "missing": missing}


def _spread(values: Sequence[float], rows: Sequence[int], count: int) -> list[float | None]:
    """One value per image, None where there is none."""
    known = dict(zip(rows, values, strict=True))
    return [known.get(row) for row in range(count)]
