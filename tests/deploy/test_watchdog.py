"""A run that stands still: what it says and how often, and that it goes on; in one process and on Ray."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from terminal import result

from deploy.watchdog import Watchdog

STALLING = """
import time
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 4:  # the first chunk of step 2; 1 is the grid
        time.sleep(3)
    return [float(image.mean()) for image in images], {}
"""

BUSY = """
import threading, time
from pathlib import Path
from deploy.watchdog import write_stacks
def deep(levels):
    return levels and deep(levels - 1)
def busy():
    while True:
        deep(50)
        exec("def made(): return [n for n in range(5)]\\nmade()")
threading.Thread(target=busy, daemon=True).start()
with Path("stacks.txt").open("w") as file:
    for _ in range(50):
        time.sleep(0.01)
        write_stacks(file)
"""


def linger(enough: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not enough():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_speaks_after_the_set_time_and_then_at_growing_pauses(tmp_path):
    told, file = list[float](), tmp_path / "stacks.txt"
    with Watchdog(0.1, lambda: 0, told.append, file):
        linger(lambda: len(told) == 3)
    assert [told[0] >= 0.1, told[1] - told[0] >= 0.2, told[2] - told[1] >= 0.4] == [True] * 3
    stacks = file.read_text()
    assert stacks.count(": nothing has moved for ") == 3 and stacks.count("Thread MainThread:") == 3
    assert stacks.count(", in linger") == 3 and stacks.count("Thread watchdog:") == 3


def test_threads_that_still_run_do_not_crash_the_process_whose_stacks_are_read(tmp_path):
    subprocess.run([sys.executable, "-c", BUSY], cwd=tmp_path, check=True, timeout=60)
    stacks = (tmp_path / "stacks.txt").read_text()
    assert stacks.count("Thread MainThread:") == 50 and stacks.count(", in busy") == 50


def test_after_movement_it_speaks_of_the_new_standstill_only(tmp_path):
    told, stage = list[float](), [0]
    with Watchdog(0.1, lambda: stage[0], told.append, tmp_path / "stacks.txt"):
        linger(lambda: len(told) == 2)
        stage[0], moved = 1, time.monotonic()
        linger(lambda: len(told) == 3)
        assert 0.1 <= told[2] <= time.monotonic() - moved


def test_it_is_silent_while_things_move_and_leaves_no_file(tmp_path):
    told, count = list[float](), itertools.count()
    with Watchdog(0.1, lambda: next(count), told.append, tmp_path / "stacks.txt"):
        time.sleep(0.5)
    assert told == [] and not (tmp_path / "stacks.txt").exists()


def test_in_one_process_a_reward_that_stalls_is_named_and_the_run_goes_on(train, reward_file, tmp_path):
    answer = train(*reward_file(STALLING), "stall=0.5")
    assert "Nothing was drawn, scored or learned for 0:0" in answer.err
    assert "The run waits for samples and scores of step 2, and goes on waiting." in answer.err
    assert "samplers: this process, 5 chunks drawn; rewards: this process, 3 chunks scored; the learner" in answer.err
    folder = tmp_path / "runs" / "small"
    assert "in reward" in (folder / "stacks.txt").read_text()
    assert answer.code == 0 and result(folder)["steps"] == 2


@pytest.mark.ray
def test_on_ray_it_says_who_is_there(ddpo, run_file, reward_file, tmp_path):
    answer = ddpo("train", run_file, *reward_file(STALLING), "stall=0.5")
    there = "samplers: 1 workers, 0 chunks in hand, 0 waiting; jpeg: 1 workers, 1 chunks in hand, 1 waiting"
    assert f"step 2, and goes on waiting. {there}; the learner has learned 1 steps" in answer.err
    assert "in collect" in (tmp_path / "runs" / "small" / "stacks.txt").read_text()
    assert answer.code == 0 and result(tmp_path / "runs" / "small")["steps"] == 2
