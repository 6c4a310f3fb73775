"""Runs the parts of the check one after the other, each in a process and a time limit of its own.

    python -m bench.gpu [--dry] [--parts NAME,...] [--seconds N] [--out FOLDER]

Consumes nothing, produces a line a result as it comes and FOLDER/gpu.json at the end; waits for a part no longer than
its limit. What a part has found before it fails or is ended stays. The parent imports everything once and never touches
the GPU, so that a part is a fork away and starts with all its memory free.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from deploy.cluster import QUIET, thread_settings

os.environ.update(QUIET | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
if "--dry" in sys.argv:
    os.environ.update(thread_settings(1))  # before torch is imported; a GPU's host has cores enough

from bench.gpu import correctness, models, predecessors, runs, speed
from bench.gpu.measure import Bench
from ddpo.source import ROOT
from deploy.facts import _commit

Part = tuple[Callable[[Bench], None], float]
PARTS: dict[str, Part] = {  # with the seconds that it may take
    "names": (correctness.names, 30), "models": (models.build, 60), "gradient": (correctness.gradient, 40),
    "ways": (speed.ways, 130), "noise": (correctness.noise, 50), "learning": (speed.learning, 45),
    "sampling": (speed.sampling, 45), "ddpo-pytorch": (predecessors.ddpo_pytorch, 30), "learns": (runs.learns, 60),
    "repeats": (correctness.repeats, 30), "ray": (runs.on_ray, 90), "profile": (speed.profile, 25),
    "devices": (correctness.devices, 25), "bare": (predecessors.bare, 30), "size": (runs.full_size, 90),
}


def main() -> int:
    """Run them; the exit code is 1 where a part failed in a dry run, which is there to see that all of them work."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="ddpo-gpu-"))
    end, failed = time.monotonic() + options.seconds, []
    try:
        for name in options.parts:
            left = end - time.monotonic()
            outcome = _in_time(name, folder, options.dry, min(PARTS[name][1], left)) if left > 5 else "no time was left"
            if outcome:
                failed.append(f"{name}: {outcome}")
                print(f"[{name}] FAILED: {outcome}", flush=True)
        _write(options, folder, failed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed and options.dry else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU with tiny networks, to see that every part runs")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=600, help="for everything (600)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / ".cache", help="folder of gpu.json (bench/.cache)")
    parser.add_argument("--commit", default=_commit(), help="that is checked, where there is no git")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PARTS)}")
    return options


def _in_time(name: str, folder: Path, dry: bool, seconds: float) -> str:
    """Run one part; returns what went wrong, empty where nothing did."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(name, folder, dry))
    start = time.monotonic()
    process.start()
    process.join(seconds)
    if process.is_alive() and process.pid:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        process.join()
        return f"ended after {seconds:.0f} s"
    print(f"[{name}] took {time.monotonic() - start:.1f} s", flush=True)
    return "" if process.exitcode == 0 else f"exit code {process.exitcode}"


def _run(name: str, folder: Path, dry: bool) -> None:
    os.setsid()
    try:
        PARTS[name][0](Bench(name, folder, dry))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _write(options: argparse.Namespace, folder: Path, failed: list[str]) -> None:
    results = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    options.out.mkdir(parents=True, exist_ok=True)
    table = {"commit": options.commit, "dry": options.dry, "failed": failed, "results": results}
    (options.out / "gpu.json").write_text(json.dumps(table, indent=1))
    print(f"{len(results)} results in {options.out / 'gpu.json'}; failed: {failed or 'none'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
