"""A user's own reward: a function in a Python file.

    def reward(images, prompts, metadata):     # uint8 (B, Y, X, 3), B texts, B dictionaries
        return scores, info                    # B numbers, a dictionary (logged, may be empty)

The contract of ddpo-pytorch and TRL. The driver reads the file once and sends its text, so that a worker on another
node needs no copy of it; the file's folder is on the path where it exists, for the file's own imports.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpo.errors import InputError, RewardError

RewardFunction = Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]]


def read_source(path: str, function: str, key: str) -> str:
    """The file's text, checked without running it: it parses and defines the function. Raises InputError."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        names = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"rewards.{key}.path: cannot read {path}: {error}.") from None
    except SyntaxError as error:
        raise InputError(f"rewards.{key}.path: {path}, line {error.lineno}: {error.msg}.") from None
    if function not in names:
        found = ", ".join(sorted(names)) or "none"
        raise InputError(f"rewards.{key}.function: {path} defines no function {function!r}; it defines: {found}.")
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
    except Exception as error:
        raise RewardError(f"the reward file {path} failed while loading: {type(error).__name__}: {error}") from error
    return getattr(module, function)
