"""A reward of one's own, to watch: does the independent judge name animal and activity as the prompt does?

    [rewards.named]
    kind = "function"
    path = "menagerie/named.py"
    weight = 0

Consumes uint8 (B, 64, 64, 3) images and prompts (an animal, with or without its article, or a scene); produces 1 where
animal and activity are right, else 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from menagerie import article, judge, scene


def reward(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[list[float], dict[str, Any]]:
    """Whether each image is named as its prompt, and what it is named."""
    animals, deeds = judge.classify(images), judge.activities(images)
    names = [
        article(animal) if deed == judge.NOTHING else scene(animal, deed)
        for animal, deed in zip(animals, deeds, strict=True)
    ]
    right = [
        float(prompt in (name, animal) if deed == judge.NOTHING else prompt == name)
        for name, animal, deed, prompt in zip(names, animals, deeds, prompts, strict=True)
    ]
    return right, {"caption": names}
