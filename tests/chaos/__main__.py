"""Runs under fire: python tests/chaos --count 20 --seed 0 (`make chaos`)

Every schedule (tests/chaos/schedule.py) is a function of its seed: a run of eight steps on a tiny model, on a fake
cluster of three nodes and a head or in one process, with a reward that may be slow or raise on every tenth call, to
which one to four things happen: SIGKILL of a sampler, a reward worker, a rank of the learner or the driver, a node that
is gone at once, SIGTERM, a pool scaled. What must hold at the end of each: the run comes to its end (with --resume
where its driver was killed), no image is lost or counted twice (`ddpo audit`), none is masked, and the LoRA digest is
that of the undisturbed run. Prints one line a schedule, and how long it took until the next step was learned, where
the driver was ended from its next start on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from deploy import cluster as private  # noqa: E402

os.environ.update(private.QUIET | private.thread_settings(1) | private._private())  # before Ray reads them

import tiny  # noqa: E402
import world  # noqa: E402
from schedule import STEPS, Schedule, draw  # noqa: E402
from terminal import result, write_run  # noqa: E402

from deploy.audit import audit  # noqa: E402

REWARD = """import time

calls = 0


def reward(images, prompts, metadata):
    global calls
    calls += 1
    time.sleep({seconds})
    if calls % {fails} == 0:
        raise OSError("busy")
    return [-float(len(set(image.tobytes()))) for image in images], {{}}
"""
IMAGES = 8 * STEPS
TROUBLES = {"none": (0.2, 10**9), "slow": (1.0, 10**9), "fails": (0.2, 10)}  # seconds a call, and which call raises


def files(folder: Path) -> dict[str, Path]:
    """The run file of each trouble that a reward may make."""
    model = folder / "model"
    base, found = tiny.run(model if model.exists() else tiny.make(model)), {}
    for trouble, (seconds, fails) in TROUBLES.items():
        code = folder / f"{trouble}.py"
        code.write_text(REWARD.format(seconds=seconds, fails=fails))
        reward = {"kind": "function", "path": str(code), "workers": 2}
        table = {**base, "steps": STEPS, "rewards": {"mine": reward}, "actors": {"count": 2, "batch": 4},
                 "checkpoints": {"every": 2, "keep": 3}}
        found[trouble] = write_run(folder / f"{trouble}.toml", table)
    return found


def undisturbed(lag: int, ranks: int, file: Path, folder: Path, fake: Any) -> str:
    """The digest of the run to which nothing happens."""
    calm = Schedule(10**6 + 10 * lag + ranks, ranks == 1, lag, ranks, "none", ())
    run = world.Disturbed(calm, file, folder, fake)
    run.go()
    return result(run.path)["lora_digest"]


def check(run: world.Disturbed, expected: str) -> None:
    """Raises RuntimeError where something was lost, counted twice or learned otherwise."""
    books, digest = audit(run.path), result(run.path)["lora_digest"]
    books.check()
    if not books.ended or (books.drawn, books.trained, books.in_flight) != (IMAGES, IMAGES, 0):
        raise RuntimeError(f"{books}")
    if digest != expected:
        raise RuntimeError(f"another digest: {digest:.12} for {expected:.12}")


def summary(lines: list[dict[str, Any]]) -> str:
    """Counts, and seconds until the next step was learned, by what struck."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for strike in line["struck"]:
            if strike["victim"] != world.NOTHING and "seconds" in strike:
                seconds[strike["kind"]].append(strike["seconds"])
    failed = [line["schedule"] for line in lines if line["error"]]
    table = [f"{kind:<12} {len(found):>5} {statistics.median(found):>8.1f} {max(found):>8.1f}"
             for kind, found in sorted(seconds.items())]
    head = f"{len(lines)} schedules, {len(failed)} failed"
    return "\n".join([head, *failed, f"{'struck':<12} {'times':>5} {'median s':>8} {'longest':>8}", *table])


def main() -> int:
    """Run the schedules; 1 where one failed."""
    parser = argparse.ArgumentParser(description="runs under fire")
    parser.add_argument("--count", type=int, default=20, help="schedules")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    parser.add_argument("--out", type=Path, help="keep runs, what they said and results.jsonl there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as parts:
        folder = (options.out or Path(parts)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return fire(range(options.seed, options.seed + options.count), folder, Path(parts))


def fire(seeds: range, folder: Path, parts: Path) -> int:
    """One schedule after the other on one cluster."""
    by_trouble, digests, lines = files(folder), {}, []
    schedules = [draw(seed) for seed in seeds]
    on_ray = any(not schedule.alone for schedule in schedules)
    with world.cluster(parts / "ray") if on_ray else nullcontext() as fake:
        for schedule in schedules:
            key = schedule.lag, schedule.ranks
            if key not in digests:
                digests[key] = undisturbed(*key, by_trouble["none"], folder, fake)
            run = world.Disturbed(schedule, by_trouble[schedule.trouble], folder, fake)
            lines.append(_one(run, digests[key]))
            with (folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(summary(lines))
    return int(any(line["error"] for line in lines))


def _one(run: world.Disturbed, expected: str) -> dict[str, Any]:
    began, error = time.monotonic(), ""
    try:
        run.go()
        check(run, expected)
    except Exception as found:
        traceback.print_exc()
        error = f"{type(found).__name__}: {found}"
    seconds = round(time.monotonic() - began, 1)
    print(f"{'FAILED' if error else 'ok':<6} {seconds:>6.1f} s  {run.schedule}  {error}", flush=True)
    return {"seed": run.schedule.seed, "schedule": str(run.schedule), "error": error, "seconds": seconds,
            "struck": run.struck}


if __name__ == "__main__":
    sys.exit(main())
