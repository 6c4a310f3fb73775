"""Advice is checked by following it: in the simulator the run becomes as much faster as was said."""

from __future__ import annotations

import pytest

from deploy.advice import Advice, advise, of, share_gpu
from deploy.prepare import prepare
from deploy.recipes import find
from deploy.simulate import Times, simulate

CHUNKS = 24


def seconds(times: Times, counts: dict[str, int], lag: int) -> float:
    run = find("demo", [
        "steps=20", f"learner.images_per_step={16 * CHUNKS}", "learner.minibatch=64", f"lag={lag}",
        f"actors.count={counts['samplers']}", f"rewards.jpeg.workers={counts['jpeg']}",
    ])
    prepared = prepare(run)
    return simulate(run, prepared.base, prepared.prompts, times).seconds_per_step


@pytest.mark.parametrize(
    ("sample", "score", "learn", "counts", "lag", "limits"),
    [
        (2.0, 1.0, 10.0, {"samplers": 2, "jpeg": 3}, 3, "samplers"),
        (1.0, 4.0, 14.0, {"samplers": 3, "jpeg": 2}, 3, "jpeg"),
        (1.0, 1.0, 20.0, {"samplers": 2, "jpeg": 2}, 3, "learner"),
        (2.0, 2.0, 24.0, {"samplers": 2, "jpeg": 2}, 0, "lag"),
        (24.0, 24.0, 24.0, {"samplers": 24, "jpeg": 24}, 1, "lag"),  # a chunk a worker: nothing streams
    ],
)
def test_following_the_advice_helps_as_much_as_it_says(sample, score, learn, counts, lag, limits):
    times = Times(sample, learn, {"jpeg": score})
    work = {"samplers": CHUNKS * sample, "jpeg": CHUNKS * score}
    advice = advise(work, counts, learn, lag, CHUNKS)
    assert advice.limits == limits
    before = seconds(times, counts, lag)
    if limits == "lag":
        after = seconds(times, counts, lag + advice.more)
    elif limits == "learner":
        after = seconds(times, {name: 2 * count for name, count in counts.items()}, lag)
    else:
        after = seconds(times, counts | {limits: counts[limits] + advice.more}, lag)
    assert before / after == pytest.approx(advice.faster, rel=0.05)


def test_it_is_said_in_a_sentence():
    assert str(Advice("describe", 2, 1.31)) == "describe limits you: +2 workers, about 1.3 times as fast"
    learner = str(Advice("learner", 0, 1.0))
    assert learner.startswith("the learner limits you; more samplers or reward workers would not help, ")
    assert "learner.ranks" in learner and "learner.micro_batch" in learner  # what would


def test_there_is_none_while_a_pool_has_nobody_or_in_one_process():
    row = {"seconds": {"sample": 2.0, "score jpeg": 1.0, "learn": 1.0}, "workers": {"samplers": 2, "jpeg": 1}}
    assert of([row], 1, 4) is not None
    assert of([{**row, "workers": {"samplers": 0, "jpeg": 1}}], 1, 4) is None
    assert of([{"seconds": row["seconds"]}], 0, 4) is None and of([], 0, 4) is None


def test_samplers_and_learner_on_one_gpu_gain_little_by_lag():
    work, counts = {"samplers": 20.0, "jpeg": 1.0}, {"samplers": 1, "jpeg": 1}
    assert share_gpu(0.4, 0.6) and share_gpu(0.25, 0.25)
    assert not any(share_gpu(*gpus) for gpus in ((1, 1), (0.6, 0.6), (0, 0), (0, 1)))
    for lag in (0, 1, 2):
        assert advise(work, counts, 18.0, lag, CHUNKS).limits != "gpu"
        assert advise(work, counts, 18.0, lag, CHUNKS, shared=True).limits == "gpu"
    assert advise(work, counts, 0.01, 0, CHUNKS, shared=True).limits == "samplers"  # they do not meet
    assert advise({**work, "jpeg": 90.0}, counts, 18.0, 3, CHUNKS, shared=True).limits == "jpeg"
    assert "take turns by time slice (there is no MPS), so lag gains little" in str(Advice("gpu", 0, 1.0))
