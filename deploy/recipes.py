"""Recipes: run files that ship with the program, found by name; any other run file by path.

Consumes a name or path and overrides, produces a `Run`. No torch.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.runfile import load

FOLDER = Path(__file__).resolve().parent / "recipes"


def names() -> list[str]:
    """All recipe names."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def summary(name: str) -> str:
    """The recipe's first comment line."""
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


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
