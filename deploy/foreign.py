"""Configurations of TRL's DDPOTrainer and of kvablack/ddpo-pytorch, read and never run.

Consumes their files, produces their options as one flat table under TRL's names (ddpo-pytorch's
config.sample.batch_size is TRL's sample_batch_size) and a note for every line that was not read; waits for nothing.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from ddpo.errors import InputError

TRACKING = "per_prompt_stat_tracking"  # a switch with TRL, a table or None with ddpo-pytorch


def fields(path: Path) -> dict[str, Any]:
    """The fields of TRL's DDPOConfig, as JSON or YAML; YAML takes a number like 3e-4 for a text."""
    import yaml

    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(found, dict):
        raise InputError(f'{path} holds no table of DDPOConfig\'s fields, such as {{"num_epochs": 100}}.')
    numbers = {key: float(text) for key, text in found.items() if re.fullmatch(r"[\d.]+e-?\d+", str(text))}
    return {str(key): value for key, value in (found | numbers).items() if value is not None}


def assigned(path: Path, function: str, notes: list[str]) -> dict[str, Any]:
    """What a function of a ddpo-pytorch config assigns, and those that it calls to begin with."""
    try:
        tree = ast.parse(_text(path))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path} is no Python: {error}.") from None
    functions = {part.name: part for part in tree.body if isinstance(part, ast.FunctionDef) and not part.args.args}
    if function not in functions:
        raise InputError(f"{path} has no {function}() without arguments. Write {path}:NAME, one of its functions: "
                         f"{', '.join(functions) or 'none'}.")
    return _Body(path, functions, notes).read(function)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {path} cannot be read: {error}.") from None


class _Body:
    """The body of one function. aliases: its names for config and parts of it, and what they stand for."""

    def __init__(self, path: Path, functions: dict[str, ast.FunctionDef], notes: list[str]) -> None:
        self.path, self.functions, self.notes = path, functions, notes
        self.aliases = {"config": ""}

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for line in self.functions[name].body:
            if isinstance(line, ast.Assign):
                found |= self._called(name, line) if isinstance(line.value, ast.Call) else self._valued(line)
            elif not isinstance(line, ast.Expr | ast.Return):
                self._note(line, "is no plain assignment and was not read")
        return found

    def _called(self, name: str, line: ast.Assign) -> dict[str, Any]:
        """config = base.get_config(), config = aesthetic(), config.train = train = ml_collections.ConfigDict()."""
        made = ast.unparse(line.value).removesuffix("()")
        if made == "base.get_config":
            base = self.path.with_name("base.py")
            return assigned(base, "get_config", self.notes) if base.is_file() and base != self.path else {}
        if made in self.functions:
            others = {key: part for key, part in self.functions.items() if key != name}
            return _Body(self.path, others, self.notes).read(made) if made in others else {}
        keys = [key for target in line.targets if (key := self._key(target))]
        self.aliases |= {target.id: key for key in keys for target in line.targets if isinstance(target, ast.Name)}
        if not made.endswith("ConfigDict"):
            self._note(line, "is no plain assignment and was not read")
        return {key: True for key in keys if key == TRACKING}

    def _valued(self, line: ast.Assign) -> dict[str, Any]:
        key = self._key(line.targets[0])
        try:
            value = ast.literal_eval(line.value)
        except ValueError:
            self._note(line, "has no plain value and was not read")
            return {}
        if key == TRACKING and isinstance(value, dict):
            return {key: True, **{f"{key}_{part}": known for part, known in value.items()}}
        return {key: value} if key else {}

    def _key(self, target: ast.expr) -> str:
        """config.sample.batch_size, equally sample.batch_size, as sample_batch_size; empty for what is no option."""
        first, _, rest = ast.unparse(target).partition(".")
        if first not in self.aliases or not rest:
            return ""
        return "_".join(filter(None, [self.aliases[first], *rest.split(".")]))

    def _note(self, line: ast.stmt, what: str) -> None:
        self.notes.append(f"{self.path}, line {line.lineno} {what}: {ast.unparse(line).splitlines()[0]}")
