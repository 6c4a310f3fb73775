"""SIGTERM as a machine sends it that is about to be taken away: what is kept, how soon, and that nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from terminal import Answer, leftovers, metrics, result

NOTICE = 30  # seconds, of checkpoints.notice
WORDS = ["steps=4", "checkpoints.every=1000", "rewards.jpeg.timeout=900"]

# Call 1 is the grid's, then come two for every step: 4 is in the midst of step 2.
SLOW = """
import os, pathlib, signal, time
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 4:
        pathlib.Path({marker!r}).touch()
        {act}
    return [float(image.mean()) for image in images], {{}}
"""


@pytest.fixture
def slow(reward_file: Callable[[str], list[str]], tmp_path: Path) -> Callable[[str], list[str]]:
    """slow(act): the run whose reward does `act` in the midst of step 2."""
    return lambda act: [*reward_file(SLOW.format(marker=str(tmp_path / "midst"), act=act)), *WORDS]


def ends_alike(ddpo: Callable[..., Answer], words: list[str], run_file: Path) -> bool:
    """Whether the run, resumed, has the digest of one that was not disturbed, and both ledgers add up."""
    runs = run_file.parent / "runs"
    for more in (["--resume"], ["name=undisturbed"]):
        answer = ddpo("train", run_file, "--in-process", *more, *words)
        assert answer.code == 0, answer.err
    assert [ddpo("audit", runs / name).code for name in ("small", "undisturbed")] == [0, 0]
    return result(runs / "small")["lora_digest"] == result(runs / "undisturbed")["lora_digest"]


@pytest.mark.parametrize("grids", ["images.every=1000", "images.every=1"], ids=["in a step", "while its grid is drawn"])
def test_a_step_longer_than_the_notice_is_left_and_the_one_before_it_kept(ddpo, slow, run_file, tmp_path, grids):
    act = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(500)"
    answer = ddpo("train", run_file, "--in-process", *slow(act), "checkpoints.notice=1.5", grids)
    assert answer.code == 130 and "Stopping after this step, or in 0.75 s, with a checkpoint." in answer.err
    assert "checkpoints.notice = 1.5 s are nearly over; the newest checkpoint is runs/small/checkp" in answer.err
    folder = tmp_path / "runs" / "small"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000001"] and leftovers(folder) == []
    assert ddpo("audit", folder).code == 0
    assert ends_alike(ddpo, slow("pass"), run_file)


def test_a_step_that_ends_in_time_is_kept_too(ddpo, slow, run_file, tmp_path):
    act = "os.kill(os.getpid(), signal.SIGTERM)"
    answer = ddpo("train", run_file, "--in-process", *slow(act))
    assert answer.code == 130 and answer.err.endswith("stopped after step 2 of 4; --resume goes on from there.\n")
    assert sorted(path.name for path in (tmp_path / "runs/small/checkpoints").iterdir()) == ["000001", "000002"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("act", "everyone", "lag", "steps"),
    [("time.sleep(3)", False, 0, 2), ("time.sleep(500)", False, 1, 1), ("time.sleep(3)", True, 1, 1)],
    ids=["the step ends in time", "it does not", "the cluster is told too"],
)
def test_on_ray_it_leaves_within_the_notice(start, ddpo, slow, run_file, tmp_path, act, everyone, lag, steps):
    command = start("train", run_file, *slow(act), f"lag={lag}")
    end = time.monotonic() + 300
    while not (tmp_path / "midst").exists() or not (tmp_path / "runs/small/metrics.jsonl").exists():
        assert command.process.poll() is None and time.monotonic() < end, command.terminal()
        time.sleep(0.05)
    told = time.monotonic()
    for process in command.left() if everyone else [psutil.Process(command.process.pid)]:
        process.send_signal(signal.SIGTERM)
    code = command.process.wait(120)
    seconds = time.monotonic() - told
    print(f"left {seconds:.1f} s after SIGTERM, of {NOTICE} s\n{command.terminal()}")
    assert seconds < NOTICE and "Traceback" not in command.terminal() and "never retrieved" not in command.terminal()
    folder = tmp_path / "runs" / "small"
    if not everyone:  # else Ray may end this process, whose cluster has gone, before it can do anything: as kill -9
        assert code == 130 and leftovers(folder) == [], command.terminal()
        assert len(metrics(folder)) >= steps and (folder / "checkpoints" / f"{steps:06d}").is_dir()
    assert ddpo("audit", folder).code == 0
    assert ends_alike(ddpo, [*slow("pass"), f"lag={lag}"], run_file)
