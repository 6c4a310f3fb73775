"""learner.correction: nothing to correct at lag 0, the clip around the step's start, figures that stay finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rounding
import tiny
import torch

from actors.prompts import Draw, source
from actors.sampler import Sampler
from ddpo.base import find
from ddpo.config import Run
from ddpo.runfile import parse
from ddpo.types import Policy, Report, Trajectory
from learner.learner import Learner
from learner.proximal import alpha, recomputed
from learner.ranks import Ranks

pytestmark = pytest.mark.numbers
ADVANTAGES = np.array([1.0, -1.0, 0.5, 2.0, -0.5, 0.3, -2.0, 0.7])
ALL = np.ones(8, bool)
CLIP, TRUNCATE, DECOUPLED = ((f"learner.correction={kind}",) for kind in ("clip", "truncate", "decoupled"))
LOGLINEAR = (*DECOUPLED, "learner.proximal=loglinear")
CORRECTIONS = [CLIP, TRUNCATE, DECOUPLED, LOGLINEAR]
ONE_UPDATE = "learner.minibatch=8"


def last(words: tuple[str, ...]) -> str:
    return words[-1]


def run_of(model: Path, *overrides: str) -> Run:
    return parse(tiny.run(model), ["policy.guidance=1", "policy.steps=4", "steps=9", *overrides], "test")


@pytest.fixture(scope="module")
def draw(model: Path) -> Callable[[int, Policy], list[Trajectory]]:
    """draw(step, policy): the step's batch, from one sampler for all tests."""
    run = run_of(model)
    sampler, prompts = Sampler(run, find(run.policy.base)), Draw(run, source(run.prompts))
    return lambda step, policy: [sampler.sample(part, policy)[1] for part in prompts(step).chunks(run.actors.batch)]


@pytest.fixture(scope="module")
def learned(model: Path, draw) -> Callable[..., tuple[str, list[Report]]]:
    """learned(*overrides, steps, lag): digest and reports after `steps` steps on images of the policy `lag` before."""

    @functools.cache
    def learn(*overrides: str, steps: int, lag: int) -> tuple[str, list[Report]]:
        run = run_of(model, f"lag={lag}", *overrides)
        learner, reports = Learner(run, find(run.policy.base)), []
        policies = [learner.policy()]
        for step in range(steps):
            reports.append(learner.update(draw(step, policies[max(0, step - lag)]), ADVANTAGES, ALL))
            policies.append(learner.policy())
        return learner.policy().digest, reports

    return learn


@pytest.mark.parametrize("correction", [DECOUPLED, LOGLINEAR], ids=last)
def test_at_lag_0_decoupled_is_clip_bit_for_bit(learned, correction):
    digest, reports = learned("learner.clip=1e-4", steps=2, lag=0)
    assert reports[-1].clip_fraction > 0 and reports[-1].effective_sample_size < 1
    assert learned("learner.clip=1e-4", *correction, steps=2, lag=0)[0] == digest


def test_at_lag_0_the_first_truncated_update_is_the_score_functions_bit_for_bit(learned):
    score, _ = learned(ONE_UPDATE, "learner.algorithm=ddpo-sf", steps=1, lag=0)
    assert learned(ONE_UPDATE, *TRUNCATE, steps=1, lag=0)[0] == score


def test_the_first_update_of_a_stale_step_lies_at_the_centre_of_the_decoupled_clip(learned):
    options = (ONE_UPDATE, "learner.clip=1e-7")
    clip, recompute, loglinear = (learned(*options, *words, steps=3, lag=2) for words in (CLIP, DECOUPLED, LOGLINEAR))
    assert min(clip[1][-1].mean_abs_log_prob_delta, recompute[1][-1].mean_abs_log_prob_delta) > 1e-5
    assert clip[1][-1].clip_fraction > 0.9
    assert recompute[1][-1].clip_fraction == loglinear[1][-1].clip_fraction == 0
    assert recompute[0] == loglinear[0]  # their versions coincide while no update has been made


def test_with_several_updates_a_step_all_corrections_differ_on_stale_images(learned):
    digests = {learned("learner.clip=1e-4", *words, steps=3, lag=2)[0] for words in CORRECTIONS}
    assert len(digests) == len(CORRECTIONS)


def test_alpha_counts_versions_in_updates():
    assert [alpha(2, done, 4) for done in range(4)] == pytest.approx([1, 8 / 9, 8 / 10, 8 / 11])
    assert [alpha(0, done, 4) for done in range(4)] == [0.0] * 4


def test_recompute_asks_for_every_trained_pair_and_not_again_for_the_next_epoch(model, draw):
    run = run_of(model, "learner.inner_epochs=2", "learner.window=[0, -2]")
    learner, kept, rows = Learner(run, find(run.policy.base)), ALL.copy(), []
    kept[2] = False
    batch = learner._batch(drawn := draw(0, learner.policy()), ADVANTAGES)
    learner.denoiser.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    plan = [pairs for epoch in range(2) for pairs in learner._minibatches(epoch, kept)]
    table_BT = recomputed(learner.denoiser, batch, plan, run.learner.micro_batch, Ranks())
    trained_BT = torch.tensor(kept)[:, None] & (torch.arange(4) < 2)
    assert torch.equal(~table_BT.isnan(), trained_BT) and sum(rows) == 7 * 2 and not table_BT.requires_grad
    limit = rounding.log_prob(learner, drawn)
    torch.testing.assert_close(table_BT[trained_BT], batch.log_probs_BT[trained_BT], rtol=0, atol=limit)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=last)
def test_a_run_far_behind_its_samplers_stays_finite_and_says_how_far(learned, correction):
    _, reports = learned(ONE_UPDATE, *correction, "learner.lr=5e-3", steps=6, lag=4)
    assert [report.lag for report in reports] == [0, 1, 2, 3, 4, 4]
    for report in reports:
        assert all(math.isfinite(value) for value in (report.loss, report.grad_norm, report.ratio_max))
        assert 1 / report.pairs <= report.effective_sample_size <= 1 + 1e-12
        assert report.mean_abs_log_prob_delta <= report.max_abs_log_prob_delta
    assert reports[0].effective_sample_size == pytest.approx(1, rel=1e-12)  # float64, through a logarithm and back
    assert reports[0].max_abs_log_prob_delta == 0
    assert all(report.effective_sample_size < 1 and report.mean_abs_log_prob_delta > 0 for report in reports[1:])


@pytest.mark.parametrize("correction", [TRUNCATE, DECOUPLED], ids=last)
def test_the_truncation_bounds_the_weights(learned, correction):
    tight, loose = (
        learned(ONE_UPDATE, *correction, f"learner.truncation={most}", steps=2, lag=1) for most in (1, 1e9)
    )
    assert tight[0] != loose[0]
    if correction == TRUNCATE:  # whose clip fraction is the share of pairs beyond the truncation
        assert 0 < tight[1][-1].clip_fraction < 1 and loose[1][-1].clip_fraction == 0
