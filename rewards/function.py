"""A user's own reward: a function in a Python file.

    def reward(images, prompts, metadata):     # uint8 (B, Y, X, 3), B texts, B dictionaries
        return scores, info                    # B numbers, a dictionary (logged, may be empty)

The call of ddpo-pytorch and TRL. The driver reads the file once and sends its text, so that a worker on another
node needs no copy of it; the file's folder is on the path where it exists, for the file's own imports.
"""

from __future__ import annotations

import symtable
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpo.errors import InputError, RewardError

RewardFunction = Callable[[Any, Any, Any], Any]


def read_source(path: str, function: str, key: str) -> str:
    """The file's text, checked without running it: it parses and defines the function. Raises InputError."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        symbols = symtable.symtable(text, path, "exec").get_symbols()
    except OSError as error:
        raise InputError(f"rewards.{key}.path: cannot read {path}: {error.strerror}. Give a Python file.") from None
    except SyntaxError as error:
        raise InputError(f"rewards.{key}.path: {path}, line {error.lineno or 1}: {error.msg}.") from None
    except ValueError as error:  # bytes that are no UTF-8
        raise InputError(f"rewards.{key}.path: {path} is no Python text: {error}.") from None
    names = sorted(symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported())
    if function not in names:
        raise InputError(
            f"rewards.{key}.function: {path} defines no {function!r}; it defines: {', '.join(names) or 'nothing'}."
        )
    return text


def load(source: str, path: str, function: str) -> RewardFunction:
    """Run the file's text as a module of its own and return the function; raises RewardError where it fails."""
    module = ModuleType("user_reward")
    module.__file__ = path
    folder = str(Path(path).expanduser().resolve().parent)
    if Path(folder).is_dir() and folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(source, path, "exec"), module.__dict__)  # the user's own file, named in the user's own config
    except (Exception, SystemExit) as error:
        raise RewardError(f"the reward file {path} failed while loading: {explain(error, path)}") from error
    loaded = getattr(module, function, None)
    if not callable(loaded):
        raise RewardError(f"{function!r} in the reward file {path} is {type(loaded).__name__}, not a function.")
    return loaded


def explain(error: BaseException, path: str) -> str:
    """Kind, text and, where the user's file is involved, its line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    place = f" ({path}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{place}"
