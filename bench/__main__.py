"""Runs every comparison in turns on this machine and writes the table into docs/benchmarks.md.

    python -m bench [--quick] [--without-trl] [--base FOLDER]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from deploy.cluster import QUIET, thread_settings

os.environ.update(QUIET | thread_settings(1))

from actors.prompts import ANIMALS
from bench import parts, runs
from bench.parts import Pairing
from bench.trl_environment import Layout, TRLError, Work, layouts, run_trl
from ddpo.base import ROOT, find
from ddpo.config import load

RECIPE = ROOT / "bench" / "bench.toml"
CACHE = ROOT / "bench" / ".cache"
TARGET = ROOT / "docs" / "benchmarks.md"
START, END = "<!-- bench: written by `make bench` -->", "<!-- /bench -->"
GOALS = {"sampler": 0.95, "learner": 0.95, "Ray, lag 2 / in": 1.2, "end to end / TRL, train batch 8": 2.0,
         "end to end / TRL, its default": 4.0}


def main() -> int:
    """Run all comparisons, print each as it comes, write the table."""
    options = _options()
    rounds = 2 if options.quick else 5
    found: list[Pairing] = []
    for pairing in _pairings(options, rounds):
        found.append(pairing)
        print(_row(pairing), flush=True)
    _write(found)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true", help="two rounds instead of five")
    parser.add_argument("--without-trl", action="store_true", help="leave out the comparison that installs TRL")
    parser.add_argument("--base", default="menagerie", help="model folder (menagerie)")
    return parser.parse_args()


def _pairings(options: argparse.Namespace, rounds: int) -> Iterator[Pairing]:
    base = find(options.base)
    run = load(RECIPE, [f"policy.base={options.base}"])
    yield parts.sampler(run, base, rounds)
    yield parts.learner(run, base, rounds)
    yield from _whole(options, max(2, rounds // 2))


def _whole(options: argparse.Namespace, rounds: int) -> Iterator[Pairing]:
    cores = os.cpu_count() or 1
    base = f"policy.base={options.base}"

    def ray(lag: int) -> Callable[[], float]:
        return lambda: runs.images_per_second(RECIPE, base, f"lag={lag}", f"actors.count={cores}")

    def in_process() -> float:
        two = (f"actors.threads={cores}", f"learner.threads={cores}")
        return runs.images_per_second(RECIPE, base, *two, in_process=True)

    yield _rates("Ray, lag 2 / in one process", ray(2), in_process, rounds)
    yield _rates("Ray, lag 2 / lag 0", ray(2), ray(0), rounds)
    if not options.without_trl:
        yield _rates("end to end / TRL, train batch 8", ray(2), lambda: _trl(options.base, 8), rounds)
        yield _rates("end to end / TRL, its default (train batch 1)", ray(2), lambda: _trl(options.base, 1), 1)


def _rates(name: str, ours: Callable[[], float], other: Callable[[], float], rounds: int) -> Pairing:
    pairs = [(ours(), other()) for _ in range(rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Pairing(name, [a / b for a, b in pairs], f"{mine:.2f} images/s", f"{theirs:.2f} images/s")


def _trl(base: str, train_batch: int) -> float:
    """TRL's best layout on this machine: one process with all cores, or a process a core."""
    rates = [_trl_rate(base, train_batch, layout) for layout in layouts(os.cpu_count() or 1)]
    return max(rates)


def _trl_rate(base: str, train_batch: int, layout: Layout) -> float:
    work = Work(steps=20, guidance=5.0, images_per_epoch=64, sample_batch=16, train_batch=train_batch,
                updates_per_epoch=2, epochs=2, lora_rank=4, lr=3e-4, clip=1e-4)
    try:
        return run_trl(find(base).folder, ANIMALS, work, layout, CACHE)["images_per_second"]
    except TRLError as error:
        sys.exit(f"bench: {error}")


def _row(pairing: Pairing) -> str:
    goal = next((str(value) for key, value in GOALS.items() if pairing.name.startswith(key)), "")
    low, middle, high = min(pairing.ratios), statistics.median(pairing.ratios), max(pairing.ratios)
    spread = f"{low:.2f} to {high:.2f} ({len(pairing.ratios)})"
    return f"| {pairing.name} | **{middle:.2f}** | {spread} | {goal} | {pairing.ours} | {pairing.other} |"


def _write(found: list[Pairing]) -> None:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    day = datetime.now(UTC).date().isoformat()
    lines = [
        START, f"{os.cpu_count()} cores ({_processor()}), commit {commit}, {day}.", "",
        "| comparison | ratio | spread (rounds) | goal | ours | other |", "|---|---|---|---|---|---|",
        *[_row(pairing) for pairing in found], END,
    ]
    text = TARGET.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    TARGET.write_text(head + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
