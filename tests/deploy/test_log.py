"""What is told while a run goes on: grids, progress, W&B."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from deploy.gallery import tile
from deploy.log import clock


def test_tiles_are_laid_row_by_row_without_gaps():
    pixels = np.stack([np.full((4, 6, 3), shade, np.uint8) for shade in (10, 20, 30)])
    grid = np.asarray(tile(pixels, 2))
    assert grid.shape == (8, 12, 3)
    assert grid[0, 0, 0] == 10 and grid[0, 6, 0] == 20 and grid[4, 0, 0] == 30 and grid[7, 11, 0] == 255


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:01"), (59.0, "0:59"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_grids_are_of_the_same_noise_and_change_with_the_policy(train, tmp_path):
    train()
    finished = tmp_path / "runs" / "small"
    layout = json.loads((finished / "images" / "grid.json").read_text())
    scores = json.loads((finished / "images" / "scores.json").read_text())
    grids = sorted((finished / "images").glob("[0-9]*.png"))
    first, last = (np.asarray(Image.open(path)) for path in (grids[0], grids[-1]))
    assert grids[0].stem == "000000" and first.shape == last.shape and not np.array_equal(first, last)
    assert len(layout["prompts"]) == len(layout["seeds"]) == len(scores["000000"]["rewards"]["jpeg"])
    assert first.shape[1] == layout["columns"] * layout["tile"][1]


def test_without_a_terminal_every_step_is_a_plain_line(train):
    lines = [line for line in train().err.splitlines() if line.startswith("step ")]
    assert len(lines) >= 2
    assert re.fullmatch(r"step 1/\d+  reward -?\d+\.\d+ ± \d+\.\d+  [\d.]+ s/step  \d+:\d\d left", lines[0])


def test_wandb_offline_writes_into_the_run_folder(train, tmp_path):
    train("wandb.mode=offline")
    written = list((tmp_path / "runs" / "small" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 1
    end = time.monotonic() + 30  # W&B writes in a process of its own, which may still be at it
    while written[0].stat().st_size <= 1000 and time.monotonic() < end:
        time.sleep(0.1)
    assert written[0].stat().st_size > 1000


SAYING = """
def reward(images, prompts, metadata):
    return [float(image.mean()) for image in images], {
        "caption": [f"<b>{prompt}</b>" for prompt in prompts], "sure": [0.5] * len(prompts)
    }
"""


def test_what_a_reward_says_is_kept_for_every_image_and_shown(train, reward_file, tmp_path):
    answer = train(*reward_file(SAYING))
    assert answer.code == 0, answer.err
    folder = tmp_path / "runs" / "small"
    said = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    said = [line for line in said if "image" in line]
    assert [line["image"] for line in said] == list(range(16))
    (name,) = said[0]["said"]
    assert said[0]["said"][name] == {"caption": f"<b>{said[0]['prompt']}</b>", "sure": 0.5}
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["info"] == {f"{name}/sure": 0.5}
    report = (folder / "report.html").read_text()
    assert "“&lt;b&gt;a cat&lt;/b&gt;” → “&lt;b&gt;a cat&lt;/b&gt;”" in report
