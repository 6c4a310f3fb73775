"""Whole small runs, in this process and on the connected cluster; each gives its final LoRA digest, and is checked to
have trained every image once, or masked it: it has no folder, hence no ledger that `ddpo audit` could add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from actors.pool import LocalSamplers
from actors.prompts import Draw
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import Run, trained_timesteps
from ddpo.types import Report, Scored
from deploy import cluster
from deploy.prepare import prepare
from learner.learner import LocalLearner
from rewards.pool import LocalRewards


def learn(run: Run, pools: tuple[Any, Any, Any], log: Callable[..., None] = lambda scored, report: None) -> str:
    """Learn to the end; raises AssertionError unless every image was trained once, or masked."""
    samplers, rewards, learner = pools
    policies, counted = loop.Policies(run.lag, [learner.policy()]), []

    def count(scored: Scored, report: Report) -> None:
        counted.extend(settled(run, scored, report))
        log(scored, report)

    draw, expected = Draw(run, prepare(run).prompts), range(run.steps * run.learner.images_per_step)
    loop.run(run.steps, draw, samplers, rewards, advantage(run), learner, policies, count)
    assert counted == list(expected), f"not each image once: {Counter(counted)}"
    return learner.policy().digest


def settled(run: Run, scored: Scored, report: Report) -> tuple[int, ...]:
    """The images of a step, all of them drawn and each either trained or masked; raises AssertionError."""
    drawn = tuple(image for receipt in scored.receipts for image in receipt.ids)
    assert drawn == scored.prompts.ids and set(scored.masked) <= set(drawn), (drawn, scored.prompts.ids)
    assert np.array_equal(np.isfinite(scored.rewards_B), scored.kept_B), scored.rewards_B
    timesteps = 1 if run.learner.algorithm == "rwr" else trained_timesteps(run)
    assert report.pairs == scored.kept_B.sum() * run.learner.inner_epochs * timesteps, report
    return drawn


def in_process(run: Run, log: Callable[..., None] = lambda scored, report: None) -> str:
    return learn(run, local_pools(run), log)


def local_pools(run: Run) -> tuple[LocalSamplers, LocalRewards, LocalLearner]:
    prepared = prepare(run)
    rewards = LocalRewards(run, prepared.reward_sources)
    return LocalSamplers(run, prepared.base), rewards, LocalLearner(run, prepared.base)


def on_cluster(run: Run, log: Callable[..., None] = lambda scored, report: None) -> str:
    with cluster.pools(prepare(run)) as pools:
        return learn(run, pools, log)
