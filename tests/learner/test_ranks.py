"""Two ranks are one learner: one rank's gradients but for the order of a sum, and none goes on without the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from learning import local_pools
from two_ranks import answers, learn

from actors.prompts import Draw, source
from ddpo.config import Run
from ddpo.errors import ConfigError, InputError
from ddpo.runfile import parse
from ddpo.work import Lost
from deploy.prepare import prepare
from deploy.train import train
from learner.ranks import Ranks

pytestmark = pytest.mark.numbers
CASES = {  # parts of 6, 6, 6 and 2 pairs, or fewer where images are masked; RWR's of 2 and 2 images
    "is": ("learner.micro_batch=6",),
    "decoupled": ("learner.micro_batch=6", "learner.inner_epochs=2", "learner.correction=decoupled", "learner.kl=0.1"),
    "rwr": ("learner.micro_batch=2", "learner.algorithm=rwr", "learner.ema=0.9"),
    "a rank without work": ("learner.micro_batch=16", "learner.timestep_fraction=0.6"),
    "as sampled": ("learner.minibatch=8", "learner.timestep_fraction=0.8"),  # 4 pairs a part, as a chunk has images
}


@pytest.fixture(scope="module")
def two(model: Path) -> Iterator[list[Any]]:
    """What two ranks answer: to all cases, to a spoiled weight, and rank 0 to the death of rank 1."""
    yield list(answers([parse(tiny.run(model), list(case), "test") for case in CASES.values()]))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_steps_of_one(make_run: Callable[..., Run], two: list[Any], case: str):
    first, second = (rank[list(CASES).index(case)] for rank in two[0])
    # Both ranks have one gradient, one state and one report.
    assert str([_figures(report) for report in first.reports]) == str([_figures(report) for report in second.reports])
    for arrays in zip(itertools.chain(*first.gradients), itertools.chain(*second.gradients), strict=True):
        np.testing.assert_array_equal(*arrays)
    _assert_equal(first.state, second.state)
    # One rank has it too, but for the order of the sum, and makes the same of it.
    one = learn(make_run(*CASES[case]), led_by=first.gradients)
    _assert_equal(one.state, first.state)
    for expected, report in zip(one.reports, first.reports, strict=True):  # sums of a few dozen float64, of size 10
        assert _figures(report) == pytest.approx(_figures(expected), rel=1e-12, abs=1e-12, nan_ok=True)


def _assert_equal(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)


def test_the_ratio_of_the_first_update_is_one_on_both_ranks(two):
    for rank in two[0]:
        first = rank[list(CASES).index("as sampled")].reports[0]
        assert set(first.log_prob_delta_by_timestep.values()) == {0.0}
        assert len(first.log_prob_delta_by_timestep) == 5


def _figures(report: Any) -> dict[str, float]:
    by_timestep = {f"delta at {t}": delta for t, delta in report.log_prob_delta_by_timestep.items()}
    scalars = {key: value for key, value in asdict(report).items() if key != "log_prob_delta_by_timestep"}
    return {key: value for key, value in (scalars | by_timestep).items() if key != "seconds"}


def test_ranks_whose_weights_differ_are_refused_on_both(two):
    assert all("after step 1 the learner's ranks hold different weights" in message for message in two[1])


def test_a_rank_that_dies_does_not_leave_the_other_waiting(two):
    assert two[2][0].startswith("rank 0 of 2 waited for the figures of the step in vain: ")


def test_a_part_belongs_to_one_rank_and_knows_its_place():
    parts = list(torch.arange(40).reshape(20, 2).split(6))
    shares = [list(Ranks(rank, 3).share(parts)) for rank in range(3)]
    assert [[before for before, _ in share] for share in shares] == [[0, 18], [6], [12]]
    assert sorted(len(part) for share in shares for _, part in share) == [2, 6, 6, 6]


def test_a_rank_counts_the_parts_that_it_has_finished():
    told, parts = list[int](), list(torch.arange(40).reshape(20, 2).split(6))
    ranks = Ranks(0, 2, lambda: told.append(ranks.finished))
    seen = [ranks.finished for _ in ranks.share(parts)]
    assert (seen, told, ranks.finished) == ([0, 1], [1, 2], 2)


@pytest.mark.parametrize(("overrides", "reason"), [
    (("learner.micro_batch=16", "learner.ranks=3"), "there are only 2: 20 pairs in parts of 16; write .* = 6 or less"),
    (("learner.ranks=2", "learner.cpus=0"), r"placed by what they reserve; write learner\.cpus or learner\.gpus"),
])
def test_ranks_without_work_or_place_are_refused(make_run, overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        make_run(*overrides)


def test_several_ranks_are_not_one_process(make_run, tmp_path):
    with pytest.raises(InputError, match=r"learner\.ranks = 2 are as many processes, and --in-process is one"):
        train(prepare(make_run("learner.ranks=2")), tmp_path, None, in_process=True)
    assert not any(tmp_path.iterdir())


def test_what_nccl_finds_wrong_only_later_is_still_a_rank_that_is_gone(monkeypatch):
    class There(torch.Tensor):
        def to(self, *place: Any) -> Any:  # to a GPU, of which there is none here
            return self

    def late(device: torch.device) -> None:
        raise RuntimeError("NCCL error: remote process exited or there was a network error")

    ranks, weight, cat = Ranks(1, 2), torch.nn.Parameter(torch.ones(3)), torch.cat
    ranks.device = torch.device("cuda")
    monkeypatch.setattr(torch, "cat", lambda parts: cat(parts).as_subclass(There))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: None)  # which only begins
    monkeypatch.setattr(torch.cuda, "synchronize", late)
    with pytest.raises(Lost, match="rank 1 of 2 waited for the sum of the gradients in vain: NCCL error: remote"):
        ranks.sum_gradients([weight])


def test_the_learner_in_this_process_counts_its_micro_batches(make_run):
    samplers, rewards, learner = local_pools(run := make_run())
    scored = rewards.score(samplers.sample(Draw(run, source(run.prompts))(0), learner.policy())).wait()
    learner.update(scored, np.ones(8))
    assert learner.progress == 10  # 8 images x 5 timesteps, 4 at a time
