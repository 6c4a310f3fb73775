"""The simulator: the run's own loop and pools on virtual time, against times worked out by hand."""

from __future__ import annotations

import json

import pytest

from actors.prompts import Draw, source
from actors.sampler import Sampler
from ddpo.base import find as find_base
from ddpo.errors import InputError
from deploy.planning.network import network
from deploy.prepare import chunk_bytes, prepare
from deploy.recipes import find
from deploy.simulate import Outcome, Times, simulate
from deploy.sweep import counts, staffings
from learner.learner import Learner


@pytest.mark.parametrize("words", [(), ("learner.window=[0, -2]",), ("learner.timestep_fraction=0.5",),
                                   ("learner.algorithm=rwr",)])
def test_bytes_moved_are_those_of_real_trajectories(make_run, words):
    run = make_run(*words)
    base = find_base(run.policy.base)
    sampler, policy = Sampler(run, base), Learner(run, base).policy()
    parts = Draw(run, source(run.prompts))(0).chunks(run.actors.batch)
    drawn = [sampler.sample(part, policy)[1] for part in parts]
    moved = sum(array.nbytes for one in drawn for array in (one.states_NCHW, one.text_BLD, one.null_LD))
    assert moved == len(parts) * chunk_bytes(run, base)


def outcome(times: Times, *overrides: str) -> Outcome:
    run = find("demo", ["steps=24", "learner.images_per_step=64", "learner.minibatch=32", *overrides])  # 4 chunks
    prepared = prepare(run)
    return simulate(run, prepared.base, prepared.prompts, times)


@pytest.mark.parametrize(
    ("lag", "samplers", "sample", "score", "learn", "expected"),
    [
        (0, 1, 5.0, 1.0, 10.0, 20 + 1 + 10),  # scoring hides behind sampling, but for the last chunk
        (0, 4, 5.0, 1.0, 10.0, 5 + 4 + 10),  # four chunks come at once to one reward worker
        (1, 1, 5.0, 1.0, 10.0, 20.0),  # the samplers limit: learning happens while they draw
        (1, 2, 5.0, 1.0, 30.0, 30.0),  # the learner limits
        (1, 4, 5.0, 6.0, 10.0, 24.0),  # the reward limits
        (2, 4, 5.0, 4.0, 16.0, 16.0),  # three stages, lag 2
    ],
)
def test_a_step_takes_as_long_as_the_slowest_stage(lag, samplers, sample, score, learn, expected):
    found = outcome(Times(sample, learn, {"jpeg": score}), f"lag={lag}", f"actors.count={samplers}")
    assert found.seconds_per_step == pytest.approx(expected, rel=0.05)


def test_every_batch_is_as_old_as_lag_says_and_idle_shares_follow_from_the_times():
    found = outcome(Times(5.0, 10.0, {"jpeg": 1.0}), "lag=2", "actors.count=1")
    assert found.lag == pytest.approx((0 + 1 + 2 * 22) / 24)
    assert found.idle["learner"] == pytest.approx(0.5, abs=0.01) and found.idle["jpeg"] == pytest.approx(0.8, abs=0.03)


def test_the_drivers_own_work_limits_where_calls_are_many():
    slow = outcome(Times(1.0, 1.0, {"jpeg": 0.1}, call=0.5), "lag=1", "actors.count=4")
    assert slow.driver > 0.9 and slow.seconds_per_step == pytest.approx(8 * 0.5, rel=0.1)


def test_idle_shares_are_of_the_time_that_the_workers_were_there():
    found = outcome(Times(60.0, 10.0, {"jpeg": 1.0}), "lag=1", "actors.count=1", "actors.max_count=4")
    assert found.workers["samplers"] == 4 and 0 <= found.idle["samplers"] < 0.1  # it grew because all were busy
    many = outcome(Times(1.0, 60.0, {"jpeg": 0.1}), "lag=1", "actors.count=1", "actors.max_count=4")
    assert found.idle["learner"] > 0.5 and many.idle["samplers"] == pytest.approx(1 - 4 / 60, abs=0.01)


def test_bytes_of_a_step_are_counted_to_every_rank_and_reward(make_run, model):
    base, words = find_base(str(model)), ["learner.micro_batch=4", "learner.inner_epochs=2"]
    one = network(make_run(*words), base, 1000.0, 5)
    assert one == {"trajectories": 2 * chunk_bytes(make_run(), base), "policies": 2 * 1000.0,  # two chunks, of 4 images
                   "images": 8 * 3 * base.image_size**2}
    run = make_run(*words, "learner.ranks=3", "rewards.more.kind=incompressibility")
    updates = 2 * 8 // run.learner.minibatch
    assert network(run, base, 1000.0, 1) == {
        "trajectories": 3 * one["trajectories"], "policies": 1000.0, "images": 2 * one["images"],
        "gradients": updates * 3 * (2 * 2 / 3) * 1000.0,  # each of three ranks sends and gets 2/3 of it twice
    }


@pytest.mark.parametrize(("text", "expected"), [
    ("1,8,64", [1, 8, 64]), ("1..1024", [1 << k for k in range(11)]), ("3..20", [3, 6, 12, 20]), ("2..2", [2]),
    ("1..2,7", [1, 2, 7]),
])
def test_numbers_of_workers(text, expected):
    assert counts(text) == expected


@pytest.mark.parametrize("text", ["", "0", "4..2", "1..", "..4", "1,,2", "x", "1.5"])
def test_what_is_no_number_of_workers(text):
    with pytest.raises(InputError, match=r"are no numbers of workers: write some with commas .* such as 1\.\.64"):
        counts(text)


def test_a_line_for_each_number_of_samplers_and_of_reward_workers_like_a_run_that_measured(ddpo, run_file, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"seconds": {"sample": 20.0, "score jpeg": 8.0, "learn": 1.0}}))
    (tmp_path / "config.toml").write_text("[learner]\nimages_per_step = 8\n")
    answer = ddpo("simulate", run_file, "lag=1", "steps=20", "--like", tmp_path, "--time", "learn=2",
                  "--samplers", "1..2", "--rewards", "jpeg=1,2")
    assert answer.code == 0, answer.err
    note, header, *lines = answer.out.splitlines()
    assert note.startswith(f"Note: the times are those of {tmp_path}, which differs: policy.base is None there")
    assert header.split() == ["samplers", "jpeg", "s/step", "images/s", "lag", "GB/step", "driver", "idle"]
    rows = [line.split() for line in lines]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert [float(row[2]) for row in rows] == pytest.approx([20, 20, 10, 10], rel=0.1)  # two chunks of 10 s each
    assert [float(row[4]) for row in rows] == pytest.approx([0.95] * 4, abs=0.06)  # lag 1, but for the first step


def test_a_pool_that_the_run_does_not_have(ddpo, run_file):
    answer = ddpo("simulate", run_file, "--time", "sample=1", "--time", "jpeg=1", "--time", "learn=1",
                  "--rewards", "describe=2")
    assert answer.code == 2 and "write POOL=COUNTS, such as jpeg=1..8; the run's pools" in answer.err


def test_a_stage_of_a_reward_is_a_pool():
    run = find("alignment", ["rewards.alignment.stages={describe={workers=2}, compare={workers=1}}"])
    (words,) = staffings(run, "", ["describe=4"])
    assert words == [f"rewards.alignment.stages.describe.{key}" for key in ("workers=4", "max_workers=0")]
