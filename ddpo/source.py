"""Which code is running: the packages have generic names, so they must all come from this checkout.

Consumes the sources on disk, produces a fingerprint that the driver compares with every worker's.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from ddpo.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
WORKERS_RUN = ("ddpo", "actors", "rewards", "learner")
PACKAGES = (*WORKERS_RUN, "deploy")


def check_root() -> None:
    """Raise InputError where Python would import one of the packages from somewhere else."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != ROOT:
            raise InputError(
                f"the package {name!r} would be imported from {found}, not from {ROOT}: another package of that name "
                "hides this program's. Run from the checkout, in an environment made by `make`."
            )


def fingerprint() -> str:
    """sha256 over paths and contents of the sources that workers run: equal on two nodes that run the same code."""
    state = hashlib.sha256()
    for package in WORKERS_RUN:
        for path in sorted((ROOT / package).rglob("*.py")):
            state.update(f"{path.relative_to(ROOT)}\n".encode())
            state.update(path.read_bytes())
    return state.hexdigest()
