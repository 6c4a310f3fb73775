"""The guard against over-optimisation, the best checkpoint, and what the run and its report say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpo.config import GuardConfig
from deploy.guard import Guard, fall, mark_best
from rewards.diversity import diversity

CONFIG = GuardConfig(window=2, fall=0.5)


def rows(trained: list[float], watched: list[float | None], spread: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"step": step, "reward_mean": mean, "rewards": {"seen": seen}, "rewards_std": {"seen": spread}}
        for step, (mean, seen) in enumerate(zip(trained, watched, strict=True), 1)
    ]


def test_a_watched_reward_that_falls_while_the_trained_one_rises_is_told_once():
    guard, told = Guard(CONFIG, ["seen"], []), []
    for row in rows([1, 2, 3, 4, 5, 6, 7, 8], [0, 0.2, 1, 1, 0.6, 0.4, 0.2, 0]):
        found = guard.see(row)
        told += [found] if found else []
    (found,) = told
    assert (found.measure, found.since, found.step) == ("seen", 4, 7)  # 1.0 at steps 3, 4; 0.3 at steps 6, 7
    assert found.spreads == pytest.approx(1.0 - 0.3)
    assert "seen has fallen by 0.70 standard deviations since step 4" in str(found)


@pytest.mark.parametrize(
    ("trained", "watched", "spread"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1.0),  # both fall: a run that fails, not one that exploits
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),  # both rise
        ([1, 2, 3, 4], [1, 1, 0, 0], 3.0),  # within the spread of the images
        ([1, 2, 3], [1, 1, 0], 1.0),  # two windows are not there yet
        ([1, 2, 3, 4], [1, None, 0, 0], 1.0),  # nor two windows of known scores
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),  # no spread to measure by
    ],
)
def test_what_is_no_over_optimisation(trained, watched, spread):
    assert fall(rows(trained, watched, spread), "seen", CONFIG) is None


def test_measures_are_chosen_and_the_guard_can_be_off():
    some = rows([1, 2, 3, 4], [1, 1, 0, 0])
    silent = Guard(GuardConfig(action="off", window=2), ["seen"], [])
    chosen = Guard(GuardConfig(measures=["seen"], window=2), [], some[:3])
    assert not any(silent.see(row) for row in some)
    assert chosen.see(some[3]) is not None


def test_the_best_checkpoint_is_by_the_mean_up_to_it(tmp_path):
    some = rows([1, 9, 5, 5, 0, 0], [None] * 6)
    for step in (2, 4, 6):
        (tmp_path / f"{step:06d}").mkdir()
        (tmp_path / f"{step:06d}" / "manifest.json").write_text("{}")
        mark_best(tmp_path, step, some[:step], "reward", 3)
    assert (tmp_path / "best").resolve().name == "000004"  # 6.3 against 5 and 1.7


def test_diversity_is_the_mean_distance_from_the_others_of_the_prompt():
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 51, 255, 9)])
    scores, info = diversity(images, ["a", "a", "a", "b"], [{}] * 4)
    assert scores[:3] == pytest.approx([0.6, 0.5, 0.9]) and scores[3] is None
    assert info["missing"] == [None, None, None, "no other image of its prompt in the chunk"]


EXPLOIT = """
calls = 0
def reward(images, prompts, metadata):
    global calls
    calls += 1
    return [{sign} * calls + 0.1 * row for row in range(len(images))], {{}}
"""


@pytest.fixture
def exploited(tmp_path: Path) -> list[str]:
    """Overrides of a run whose trained reward rises and whose watched one falls, whatever is drawn."""
    words = ["rewards={}", "guard.window=1", "steps=6", "checkpoints.keep=1", "checkpoints.every=1", "images.every=2"]
    for name, sign, weight in (("up", 1, 1), ("seen", -1, 0)):
        path = tmp_path / f"{name}.py"
        path.write_text(EXPLOIT.format(sign=sign))
        words += [f"rewards.{name}.kind=function", f"rewards.{name}.path={path}", f"rewards.{name}.weight={weight}"]
    return words


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "runs/small/result.json").read_text())


def test_a_run_is_stopped_with_a_checkpoint_and_a_report(train, exploited, tmp_path):
    answer = train(*exploited, "guard.action=stop")
    assert answer.code == 0 and "The run ends here" in answer.err
    assert result(tmp_path)["steps"] == 2 and "seen has fallen" in result(tmp_path)["stopped"]
    assert [path.name for path in (tmp_path / "runs/small/checkpoints").glob("[0-9]*")] == ["000002"]
    assert "seen has fallen" in (tmp_path / "runs/small/report.html").read_text()
    more = train(*exploited, "guard.action=off", "--resume")  # the guard changes no number, so it may be changed
    assert more.code == 0 and result(tmp_path)["steps"] == 6


def test_a_warning_leaves_the_run_alone_and_the_best_checkpoint_is_kept(train, exploited, tmp_path):
    answer = train(*exploited, "checkpoints.best=seen")
    assert answer.code == 0 and answer.err.count("over-optimisation: seen") == 1
    assert result(tmp_path)["steps"] == 6 and "stopped" not in result(tmp_path)
    folder = tmp_path / "runs/small/checkpoints"
    assert sorted(path.name for path in folder.glob("[0-9]*")) == ["000001", "000006"]
    assert (folder / "best").resolve().name == "000001"  # seen falls from the start
    scores = json.loads((tmp_path / "runs/small/images/scores.json").read_text())
    assert scores["000000"]["distances"] == {"kl": 0.0, "shift": 0.0}
    assert scores["000006"]["distances"]["kl"] > 0 and scores["000006"]["distances"]["shift"] >= 0
