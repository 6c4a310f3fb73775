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

from bench import parts, runs
from bench.parts import Pairing
from ddpo.base import find
from ddpo.runfile import load
from ddpo.source import ROOT

RECIPE = ROOT / "bench" / "bench.toml"
CACHE = ROOT / "bench" / ".cache"
TARGET = ROOT / "docs" / "benchmarks.md"
START, END = "<!-- bench: written by `make bench` -->", "<!-- /bench -->"
CORES = os.cpu_count() or 1
LAG_2, LAG_0, ALONE = "Ray, lag 2, a thread each", f"Ray, lag 0, learner with {CORES} threads", "in one process"
TRL_8, TRL_1 = "TRL, train batch 8", "TRL, its default (train batch 1)"
TRL_RANKS = f"TRL, train batch 8, {CORES} processes (not one algorithm: ranks never average gradients)"
GOALS = {"sampler": 0.95, "learner": 0.95, f"{LAG_2} / {ALONE}": 1.2, f"{ALONE} / {TRL_8}": 2.0,
         f"{ALONE} / {TRL_1}": 4.0}


def main() -> int:
    """Run all comparisons, print each as it comes, write the table."""
    options = _options()
    found: list[Pairing] = []
    for pairing in _pairings(options, rounds=2 if options.quick else 5):
        found.append(pairing)
        print(_row(pairing), flush=True)
    _write(found)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true", help="two rounds of everything")
    parser.add_argument("--without-trl", action="store_true", help="leave out the comparison that installs TRL")
    parser.add_argument("--base", default="menagerie", help="model folder (menagerie)")
    return parser.parse_args()


def _pairings(options: argparse.Namespace, rounds: int) -> Iterator[Pairing]:
    run, base = load(RECIPE, [f"policy.base={options.base}"]), find(options.base)
    yield parts.sampler(run, base, rounds)
    yield parts.learner(run, base, rounds)
    yield from _whole(_runs(options), min(3, rounds))


def _runs(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Every whole run by name; each gives images per second."""
    base, run, folder = f"policy.base={options.base}", load(RECIPE), find(options.base).folder
    both = (f"actors.threads={CORES}", f"learner.threads={CORES}", "--in-process")
    found: dict[str, Callable[[], float]] = {
        LAG_2: lambda: runs.ours(RECIPE, base, "lag=2", f"actors.count={CORES}"),
        ALONE: lambda: runs.ours(RECIPE, base, *both),
        LAG_0: lambda: runs.ours(RECIPE, base, "lag=0", f"actors.count={CORES}", f"learner.threads={CORES}"),
    }
    if not options.without_trl:
        one, many = runs.one_process(CORES), runs.many_processes(CORES)
        found[TRL_8] = lambda: runs.trl(run, folder, 8, one, CACHE)
        found[TRL_1] = lambda: runs.trl(run, folder, 1, one, CACHE)
        found[TRL_RANKS] = lambda: runs.trl(run, folder, 8, many, CACHE)
    return found


def _whole(found: dict[str, Callable[[], float]], rounds: int) -> Iterator[Pairing]:
    """All runs in turns, round by round: ours at lag 2 over our other layouts, ours in one process over TRL."""
    rates: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, measure in found.items():
            rates[name].append(measure())
    for name, others in rates.items():
        best = ALONE if name.startswith("TRL") else LAG_2
        if name != best:
            ratios = [a / b for a, b in zip(rates[best], others, strict=True)]
            texts = (f"{statistics.median(column):.2f} images/s" for column in (rates[best], others))
            yield Pairing(f"{best} / {name}", ratios, *texts)


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
