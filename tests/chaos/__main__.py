"""Runs under fire: python tests/chaos --count 20 --seed 0 (`make chaos`)

Every schedule (tests/chaos/schedule.py) is a function of its seed: a run of twelve steps on a tiny model, on a fake
cluster of three nodes and a head or in one process, with a reward that may be slow or raise on every tenth call, to
which one to four things happen: SIGKILL of a sampler, a reward worker, all reward workers at once, a rank of the
learner or the driver, a node with processes of the run that is gone at once, SIGTERM, a pool scaled to up to five. A
strike waits for a victim, and the run does not end before the last one has struck. What must hold at the end: the run
has come to it (with --resume where its driver was ended), no image is lost or counted twice (`ddpo audit`), none is
masked, and the LoRA digest is that of the undisturbed run. Prints a line a schedule, then figures by kind of strike;
`--summary FILE...` prints these of any results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from deploy import cluster as private  # noqa: E402

os.environ.update(private.QUIET | private.thread_settings(1) | private._private())  # before Ray reads them

import victim  # noqa: E402
import world  # noqa: E402
from schedule import calm, draw  # noqa: E402
from summary import read, summary  # noqa: E402
from terminal import result  # noqa: E402


def main() -> int:
    """Run the schedules; 1 where one failed."""
    parser = argparse.ArgumentParser(description="runs under fire")
    parser.add_argument("--count", type=int, default=20, help="schedules")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    parser.add_argument("--out", type=Path, help="keep runs, what they said and results.jsonl there")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="FILE", help="run nothing: figures of results.jsonl")
    options = parser.parse_args()
    if options.summary:
        print(summary(read(options.summary)))
        return 0
    with tempfile.TemporaryDirectory(prefix="chaos") as parts:
        folder = (options.out or Path(parts)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return fire(range(options.seed, options.seed + options.count), folder, Path(parts))


def fire(seeds: range, folder: Path, parts: Path) -> int:
    """One schedule after the other on one cluster."""
    digests: dict[tuple[int, int], str] = {}
    schedules, lines = [draw(seed) for seed in seeds], []
    on_ray = any(not schedule.alone for schedule in schedules)
    with world.cluster(parts / "ray") if on_ray else nullcontext() as fake:
        for schedule in schedules:
            key = schedule.lag, schedule.ranks
            if key not in digests:
                digests[key] = undisturbed(*key, folder, fake)
            lines.append(_one(world.Disturbed(schedule, folder, fake), digests[key]))
            with (folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(summary(lines))
    return int(any(line["error"] for line in lines))


def undisturbed(lag: int, ranks: int, folder: Path, fake: Any) -> str:
    """The digest of the run to which nothing happens."""
    run = world.Disturbed(calm(lag, ranks), folder, fake)
    run.go()
    return result(run.path)["lora_digest"]


def _one(run: world.Disturbed, expected: str) -> dict[str, Any]:
    began, error = time.monotonic(), ""
    try:
        run.go()
        victim.check(run.path, expected)
    except Exception as found:
        traceback.print_exc()
        error = f"{type(found).__name__}: {found}"
    seconds = round(time.monotonic() - began, 1)
    print(f"{'FAILED' if error else 'ok':<6} {seconds:>6.1f} s  {run.schedule}  {error}", flush=True)
    return {"seed": run.schedule.seed, "schedule": str(run.schedule), "error": error, "seconds": seconds,
            "struck": run.struck}


if __name__ == "__main__":
    sys.exit(main())
