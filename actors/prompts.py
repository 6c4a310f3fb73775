"""Where prompts come from: c ~ p(c), a pure function of the config and the batch's number.

Consumes [prompts] and the seed, produces `Prompts`; waits for nothing. No torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddpo.config import PromptsConfig, Run
from ddpo.errors import InputError
from ddpo.types import Prompts

# The 45 common animals of Black et al. 2023, appendix D.6.
ANIMALS = """
cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle ant
butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey fly llama
camel bat gorilla hedgehog kangaroo
""".split()

DRAW, NOISE = 0, 1  # streams of random numbers that never touch


def source(config: PromptsConfig) -> list[str]:
    """All prompts of the source, in its order; raises InputError where there are none."""
    if config.kind == "animals":
        return list(ANIMALS)
    items = config.items if config.kind == "list" else _lines(Path(config.path).expanduser())
    prompts = [item.strip() for item in items if item.strip()]
    if not prompts:
        raise InputError(f"prompts.path: {config.path} holds no prompt; write one a line.")
    return prompts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts.path: cannot read {path}: {error}.") from None


class Draw:
    """draw(d): the prompts and the noise seeds of batch d; calling it again, also after a resume, gives the same."""

    def __init__(self, run: Run, prompts: list[str]) -> None:
        self.seed, self.size, self.prompts = run.seed, run.learner.images_per_step, prompts

    def __call__(self, number: int) -> Prompts:
        """Draw batch `number` uniformly with replacement; image ids count on from batch to batch."""
        chosen = self._stream(DRAW, number).integers(len(self.prompts), size=self.size)
        seeds = self._stream(NOISE, number).integers(2**63, size=self.size)
        return Prompts(
            step=number,
            ids=tuple(range(number * self.size, (number + 1) * self.size)),
            text=tuple(self.prompts[index] for index in chosen),
            metadata=({},) * self.size,
            seeds=tuple(int(seed) for seed in seeds),
        )

    def _stream(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[number, 0, 0, 0]))


def fixed(prompts: list[str], seed: int) -> Prompts:
    """The prompts of the picture grids, each with a noise of its own that never changes; ids are negative."""
    seeds = np.random.Generator(np.random.Philox(key=[seed, NOISE])).integers(2**63, size=len(prompts))
    return Prompts(
        step=-1,
        ids=tuple(-1 - index for index in range(len(prompts))),
        text=tuple(prompts),
        metadata=({},) * len(prompts),
        seeds=tuple(int(number) for number in seeds),
    )
