"""Whole runs against each other: Ray against one process, lag 2 against lag 0, ours against TRL.

Consumes run files, produces images per second of the steps after the first, through the real command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WARM_UP = 1  # steps left out: they hold start-up and, at lag k, the filling of the pipeline


class BenchError(RuntimeError):
    """A run of the benchmark failed."""


def images_per_second(recipe: Path, *overrides: str, in_process: bool = False) -> float:
    """Train and return the rate over all steps but the first; includes everything that a step includes."""
    with tempfile.TemporaryDirectory(prefix="ddpo-bench-") as folder:
        command = [sys.executable, "-m", "deploy", "train", str(recipe), f"--runs={folder}", "name=bench", *overrides]
        done = subprocess.run(
            command + ["--in-process"] * in_process, capture_output=True, text=True, timeout=1800,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, check=False,
        )
        if done.returncode:
            raise BenchError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][WARM_UP:]
    return sum(step["images"] for step in steps) / sum(step["seconds"]["total"] for step in steps)
