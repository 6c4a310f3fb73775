"""What a reader needs to repeat a run: the command, the versions, the machine.

Produces the content of run.json. No torch.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ddpo.source import ROOT


def facts(in_process: bool) -> dict[str, Any]:
    """Everything that run.json says."""
    command = " ".join(shlex.quote(part) for part in ["ddpo", *sys.argv[1:]])
    versions = {name: _version(name) for name in ("torch", "diffusers", "transformers", "peft", "ray")}
    return {
        "command": command, "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": "in-process" if in_process else "ray", "ddpo_version": _version("ddpo"),
        "python": platform.python_version(), **versions, "git_commit": _commit(),
        "host": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    call = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
