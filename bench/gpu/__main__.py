"""Runs the parts of the check one after the other, each in a process and a time limit of its own.

    python -m bench.gpu [--dry] [--parts NAME,...] [--seconds N] [--out FOLDER]

Consumes nothing, produces a line a result as it comes and FOLDER/gpu.json at the end; waits for a part no longer than
its limit. What a part has found before it fails or is ended stays.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from deploy.cluster import QUIET, thread_settings

os.environ.update(QUIET | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
if "--dry" in sys.argv:
    os.environ.update(thread_settings(1))  # before torch is imported; a GPU's host has cores enough

from bench.gpu.worker import Worker
from ddpo.source import ROOT
from deploy.facts import _commit

PARTS = {  # in their order, with the seconds that each may take
    "names": 30, "models": 60, "gradient": 40, "profile": 40, "sampling": 90, "learning": 90, "ddpo-pytorch": 60,
    "repeats": 60, "ways": 90, "noise": 60, "size": 90, "ray": 150, "options": 60, "bare": 40, "devices": 30,
    "rewards": 30, "nccl": 10, "learns": 90,
}


def main() -> int:
    """Run them; the exit code is 1 where a part failed in a dry run, which is there to see that all of them work."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="ddpo-gpu-"))
    end, failed = time.monotonic() + options.seconds, []
    worker = Worker(folder, options.dry)
    try:
        for name in options.parts:
            left = end - time.monotonic()
            wrong = worker.run(name, min(PARTS[name], left)) if left > 5 else "no time was left"
            if wrong:
                failed.append(f"{name}: {wrong}")
                print(f"[{name}] FAILED: {wrong}", flush=True)
            if wrong.startswith(("ended", "its process")):
                worker.end()
                worker = Worker(folder, options.dry)
        _write(options, folder, failed)
    finally:
        worker.end()
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed and options.dry else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="the fifteen-minute check of a GPU")
    parser.add_argument("--dry", action="store_true", help="on a CPU with tiny networks, to see that every part runs")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=600, help="for everything (600)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / ".cache", help="folder of gpu.json (bench/.cache)")
    parser.add_argument("--commit", default=_commit(), help="that is checked, where there is no git")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PARTS)}")
    return options


def _write(options: argparse.Namespace, folder: Path, failed: list[str]) -> None:
    results = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    options.out.mkdir(parents=True, exist_ok=True)
    table = {"card": _card(), "torch": version("torch"), "commit": options.commit, "dry": options.dry,
             "failed": failed, "results": results}
    (options.out / "gpu.json").write_text(json.dumps(table, indent=1))
    print(f"{len(results)} results in {options.out / 'gpu.json'}; failed: {failed or 'none'}", flush=True)


def _card() -> str:
    """Name, driver and clock of the GPU, as its driver tells them."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "a CPU"


if __name__ == "__main__":
    sys.exit(main())
