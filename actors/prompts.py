"""Where prompts come from: c ~ p(c), a pure function of the config and the batch's number.

Consumes [prompts] and the seed, produces `Prompts`; waits for nothing. No torch.

The kinds have the names that ddpo-pytorch gave them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ddpo.config import PromptsConfig, Run
from ddpo.errors import InputError
from ddpo.types import Prompt, Prompts

# The 45 common animals of Black et al. 2023, appendix D.6.
ANIMALS = """
cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle ant
butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey fly llama
camel bat gorilla hedgehog kangaroo
""".split()

# The first 398 labels of ImageNet-1k, its animals, as the paper used them, several names and all: the words of WordNet
# 3.0's synsets (Princeton University, whose licence allows it).
IMAGENET_ANIMALS = Path(__file__).with_name("imagenet_animals.txt")

DRAW, NOISE = 0, 1  # streams of random numbers that never touch


def source(config: PromptsConfig) -> list[Prompt]:
    """All prompts of the source, in its order; raises InputError where there are none."""
    prompts = SOURCES[config.kind](config)
    if not prompts:
        raise InputError(f"prompts.path: {config.path} holds no prompt; write one a line.")
    return prompts


def _simple_animals(config: PromptsConfig) -> list[Prompt]:
    """The bare names."""
    return plain(ANIMALS)


def _imagenet_animals(config: PromptsConfig) -> list[Prompt]:
    """ImageNet's labels as they are: "tench, Tinca tinca"."""
    return plain(IMAGENET_ANIMALS.read_text(encoding="utf-8").splitlines())


def _nouns_activities(config: PromptsConfig) -> list[Prompt]:
    """Every noun in every activity: "an ant riding a bike"."""
    return plain([f"{article(noun)} {activity}" for noun in config.nouns or ANIMALS for activity in config.activities])


def _counting(config: PromptsConfig) -> list[Prompt]:
    """Every noun from `low` to `high` times, with the questions that kind = "satisfaction" asks: "six bears"."""
    return [
        _counted(noun, number) for noun in config.nouns or ANIMALS for number in range(config.low, config.high + 1)
    ]


def _counted(noun: str, number: int) -> Prompt:
    many, spelt = _english().plural(noun), _english().number_to_words(number)
    questions = [f"How many {many} are there in this image?", "What animal is in this image?"]
    return Prompt(f"{spelt} {many}", {"questions": questions, "answers": [spelt, noun]})


def _list(config: PromptsConfig) -> list[Prompt]:
    return plain(config.items)


def _from_file(config: PromptsConfig) -> list[Prompt]:
    """A prompt a line; with .jsonl an object a line: {"prompt": text, "metadata": {...}}."""
    path = Path(config.path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts.path: cannot read {path}: {error}.") from None
    if path.suffix != ".jsonl":
        return plain(lines)
    return [_parsed(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(line: str, path: Path, number: int) -> Prompt:
    try:
        table = json.loads(line)
        text, metadata = table["prompt"], table.get("metadata", {})
        if isinstance(text, str) and text.strip() and isinstance(metadata, dict):
            return Prompt(text.strip(), metadata)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise InputError(
        f'prompts.path: {path}, line {number} is not {{"prompt": "a text", "metadata": {{...}}}} '
        "(metadata may be left out)."
    )


def plain(texts: Sequence[str]) -> list[Prompt]:
    """Texts without metadata; empty ones are left out."""
    return [Prompt(text.strip(), {}) for text in texts if text.strip()]


SOURCES: dict[str, Callable[[PromptsConfig], list[Prompt]]] = {
    "simple_animals": _simple_animals,
    "imagenet_animals": _imagenet_animals,
    "nouns_activities": _nouns_activities,
    "counting": _counting,
    "list": _list,
    "from_file": _from_file,
}


def article(noun: str) -> str:
    """The noun with its indefinite article, by sound: "an ant", "a unicorn"."""
    return _english().a(noun)


@cache
def _english() -> Any:
    import inflect

    return inflect.engine()


class Draw:
    """draw(d): the prompts and the noise seeds of batch d; calling it again, also after a resume, gives the same."""

    def __init__(self, run: Run, prompts: list[Prompt]) -> None:
        self.seed, self.size, self.prompts = run.seed, run.learner.images_per_step, prompts
        self.repeat = run.prompts.repeat

    def __call__(self, number: int) -> Prompts:
        """Draw batch `number` uniformly with replacement; image ids count on from batch to batch."""
        drawn = self._stream(DRAW, number).integers(len(self.prompts), size=self.size // self.repeat)
        chosen = [self.prompts[index] for index in drawn for _ in range(self.repeat)]
        seeds = self._stream(NOISE, number).integers(2**63, size=self.size)
        return Prompts(
            step=number,
            ids=tuple(range(number * self.size, (number + 1) * self.size)),
            text=tuple(prompt.text for prompt in chosen),
            metadata=tuple(prompt.metadata for prompt in chosen),
            seeds=tuple(int(seed) for seed in seeds),
        )

    def _stream(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[number, 0, 0, 0]))


def fixed(prompts: list[Prompt], seed: int) -> Prompts:
    """The prompts of the picture grids, each with a noise of its own that never changes; ids are negative."""
    seeds = np.random.Generator(np.random.Philox(key=[seed, NOISE])).integers(2**63, size=len(prompts))
    return Prompts(
        step=-1,
        ids=tuple(-1 - index for index in range(len(prompts))),
        text=tuple(prompt.text for prompt in prompts),
        metadata=tuple(prompt.metadata for prompt in prompts),
        seeds=tuple(int(number) for number in seeds),
    )
