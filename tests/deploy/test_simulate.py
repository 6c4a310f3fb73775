"""The simulator: the run's own loop and pools on virtual time, against times worked out by hand."""

from __future__ import annotations

import pytest

from actors.prompts import Draw, source
from actors.sampler import Sampler
from ddpo.base import find as find_base
from deploy.prepare import chunk_bytes, prepare
from deploy.recipes import find
from deploy.simulate import Outcome, Times, simulate
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
