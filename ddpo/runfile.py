"""Reading a run file: TOML and `table.key=value` overrides become a `Run`, or all mistakes at once.

Consumes a TOML file, produces a `Run`; waits for nothing. Types and ranges are those that ddpo.config declares.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.consistency import Problems, consistency
from ddpo.errors import ConfigError, InputError


def load(path: Path, overrides: list[str] | None = None) -> Run:
    """Read a run file, apply `table.key=value` overrides, check everything; raises ConfigError with all problems."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}. Nothing was started; mend that line.") from None
    except OSError as error:
        raise InputError(f"cannot read the run file {path}: {error.strerror}.") from None
    return parse(table, overrides or [], str(path))


def parse(table: Mapping[str, Any], overrides: list[str], source: str) -> Run:
    """Build a Run from a parsed TOML table; `source` names it in messages."""
    problems: Problems = []
    merged = _override(dict(table), overrides, problems)
    run = _build(Run, merged, "", problems)
    if not problems:
        problems += consistency(run)
    if problems:
        raise ConfigError(source, problems)
    return run


def _override(table: dict[str, Any], overrides: list[str], problems: Problems) -> dict[str, Any]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append((text, "an override is written table.key=value, for example learner.lr=1e-4"))
            continue
        *tables, last = key.strip().split(".")
        inner = table
        for name in tables:
            inner[name] = dict(inner[name]) if isinstance(inner.get(name), Mapping) else {}
            inner = inner[name]
        inner[last] = _literal(value.strip())
    return table


def _literal(text: str) -> Any:
    """Read an override's value as TOML, or as plain text where it is none (policy.base=menagerie)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(kind: type, table: Mapping[str, Any], prefix: str, problems: Problems) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            problems.append((prefix + key, _unknown(key, list(fields))))
    values = {
        key: _value(hints[key], fields[key], table[key], prefix + key, problems) for key in fields if key in table
    }
    return kind(**values)


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(known)}"
    return f"unknown key; {hint}"


def _value(hint: Any, spec: dataclasses.Field[Any], value: Any, key: str, problems: Problems) -> Any:
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        return _table(hint, value, key, problems)
    if not _fits(hint, value):
        problems.append((key, f"{value!r} is {_type_name(type(value))}, expected {_type_name(hint)}"))
    elif complaint := _out_of_range(spec.metadata, value):
        problems.append((key, complaint))
    return float(value) if hint is float and _fits(float, value) else value


def _table(hint: Any, value: Any, key: str, problems: Problems) -> Any:
    if not isinstance(value, Mapping):
        problems.append((key, f"{value!r} should be a table: write [{key}] and its keys below"))
        return {} if typing.get_origin(hint) is dict else hint()
    if typing.get_origin(hint) is not dict:
        return _build(hint, value, f"{key}.", problems)
    if not all(isinstance(part, Mapping) for part in value.values()):
        problems.append((key, f"write a table per entry, for example [{key}.{_example(key)}]"))
        return {}
    inner = typing.get_args(hint)[1]
    return {name: _build(inner, part, f"{key}.{name}.", problems) for name, part in value.items()}


def _example(key: str) -> str:
    return "describe" if key.endswith(".stages") else "jpeg"


def _fits(hint: Any, value: Any) -> bool:
    if isinstance(hint, types.GenericAlias):
        return isinstance(value, list) and all(_fits(typing.get_args(hint)[0], item) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _type_name(hint: Any) -> str:
    names: dict[Any, str] = {
        int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false", list: "a list",
        dict: "a table", list[str]: "a list of texts", list[int]: "a list of whole numbers",
    }
    return names.get(hint) or hint.__name__


def _out_of_range(limits: Mapping[str, Any], value: Any) -> str | None:
    if limits["choices"] and value not in limits["choices"]:
        close = difflib.get_close_matches(value, limits["choices"], n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        return f'"{value}" is none of {", ".join(limits["choices"])}{hint}'
    if isinstance(value, float) and not abs(value) < float("inf"):
        return f"{value} is not a finite number"
    if limits["low"] is not None and value < limits["low"]:
        return f"{value} is too small; write {limits['low']} or more"
    if limits["above"] is not None and value <= limits["above"]:
        return f"{value} is too small; write more than {limits['above']}"
    if limits["high"] is not None and value > limits["high"]:
        return f"{value} is too large; write {limits['high']} or less"
    return None
