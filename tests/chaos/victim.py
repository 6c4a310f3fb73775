"""The run that is disturbed: its file, its reward, and what must hold at its end.

Consumes a `Schedule`, produces a run file; the reward waits, for a bounded time, where it holds the run: a run that is
nearly at its end goes on once the last strike has struck. No number depends on that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from schedule import LATEST, Schedule
from terminal import result, write_run

from deploy.audit import audit

STEPS = LATEST + 5
HELD = LATEST + 2  # steps learned, from which on the run is held
HOLD = 90.0  # seconds at most; the reward's timeout is 120
IMAGES = 8  # a step
TROUBLES = {"none": (0.2, 10**9), "slow": (1.0, 10**9), "fails": (0.2, 10)}  # seconds a call, and which call raises
REWARD = """import time
from pathlib import Path

hold, metrics = Path({hold!r}), Path({metrics!r})
calls = 0


def reward(images, prompts, metadata):
    global calls
    calls += 1
    time.sleep({seconds})
    if calls % {fails} == 0:
        raise OSError("busy")
    end = time.monotonic() + {longest}
    while hold.exists() and learned() >= {held} and time.monotonic() < end:
        time.sleep(0.05)
    return [-float(len(set(image.tobytes()))) for image in images], {{}}


def learned():
    return metrics.read_bytes().count(b"\\n") if metrics.exists() else 0
"""


def place(schedule: Schedule, folder: Path) -> Path:
    """The run's folder."""
    return folder / "runs" / f"chaos-{schedule.seed}"


def hold(schedule: Schedule, folder: Path) -> Path:
    """The run is held for as long as this file exists."""
    return folder / f"{schedule.seed}.hold"


def write(schedule: Schedule, folder: Path) -> Path:
    """The run file of a schedule."""
    model, code, path = folder / "model", folder / f"{schedule.seed}.py", place(schedule, folder)
    code.write_text(_reward(schedule, folder, path / "metrics.jsonl"))
    reward = {"kind": "function", "path": str(code), "workers": schedule.workers, "cpus": 0.5}
    base: dict[str, Any] = tiny.run(model if model.exists() else tiny.make(model))
    changes = {
        "name": path.name, "steps": STEPS, "lag": schedule.lag, "rewards": {"mine": reward},
        "actors": {"count": 2, "batch": 4}, "checkpoints": {"every": 2, "keep": 3},
        "learner": {**base["learner"], "ranks": schedule.ranks},
    }
    return write_run(folder / f"{schedule.seed}.toml", base | changes)


def _reward(schedule: Schedule, folder: Path, metrics: Path) -> str:
    seconds, fails = TROUBLES[schedule.trouble]
    return REWARD.format(
        hold=str(hold(schedule, folder)), metrics=str(metrics), seconds=seconds, fails=fails, held=HELD, longest=HOLD
    )


def check(path: Path, expected: str) -> None:
    """Raises RuntimeError where a run lost an image, counted one twice, masked one or learned otherwise."""
    books, digest, images = audit(path), result(path)["lora_digest"], IMAGES * STEPS
    books.check()
    if not books.ended or (books.drawn, books.trained, books.in_flight) != (images, images, 0):
        raise RuntimeError(f"{books}")
    if digest != expected:
        raise RuntimeError(f"another digest: {digest:.12} for {expected:.12}")
