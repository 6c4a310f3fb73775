"""Prompt-image alignment: describe the image, compare the description with the prompt (Black et al. 2023, section 5.1).

Consumes images and prompts, produces BERTScore recall of the description against "The image contains {prompt}", with
the caption, precision and F1 beside it. An image whose description stays empty gets no score. The two stages are one
reward in one process, or each a pool of its own (ddpo.stages): the same code, so the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpo.config import RewardConfig
from ddpo.stages import settings
from rewards.compare import Comparer
from rewards.describe import Describer
from rewards.locate import chosen

QUESTION = "Answer concisely: what is going on in this image?"  # as in ddpo-pytorch
REFERENCE = "The image contains {prompt}"
SILENT = "the description was empty, asked twice"


class Alignment:
    """r(x_0, c) = BERTScore recall(description of x_0, reference of c)."""

    def __init__(self, config: RewardConfig) -> None:
        self.describe, self.compare = Describe(config), Compare(config)

    def __call__(
        self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float | None], dict[str, Any]]:
        """As `Compare` of what `Describe` says."""
        return self.compare(self.describe(images, prompts, metadata), prompts, metadata)


class Describe:
    """x_0 -> its description."""

    def __init__(self, config: RewardConfig) -> None:
        stage = settings(config, "describe")
        self.question, self.batch = config.question or QUESTION, stage.batch
        self.describer = Describer(chosen(config, "model"), config.max_tokens, config.dtype, stage.device)

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str], metadata: Sequence[Any]) -> list[str]:
        """One text per image, empty where the model twice said nothing."""
        size = self.batch or len(images)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return [text for part in parts for text in self.describer.ask(part, [self.question] * len(part))]


class Compare:
    """Description of x_0, c -> BERTScore."""

    def __init__(self, config: RewardConfig) -> None:
        stage = settings(config, "compare")
        self.comparer = Comparer(chosen(config, "compare"), config.layer, stage.device, stage.batch)

    def __call__(
        self, captions: Sequence[str], prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[list[float | None], dict[str, Any]]:
        """Recall or None per image; info: caption, precision, f1, and why there is no score."""
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
