"""Whole small runs, in this process and on the connected cluster; each gives its final LoRA digest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.pool import LocalSamplers
from actors.prompts import Draw
from ddpo import loop
from ddpo.advantage import advantage
from ddpo.config import Run
from deploy import cluster
from deploy.prepare import prepare
from learner.learner import LocalLearner
from rewards.pool import LocalRewards


def learn(run: Run, pools: tuple[Any, Any, Any], log: Callable[..., None] = lambda scored, report: None) -> str:
    samplers, rewards, learner = pools
    policies = loop.Policies(run.lag, [learner.policy()])
    draw = Draw(run, prepare(run).prompts)
    loop.run(run.steps, draw, samplers, rewards, advantage(run), learner, policies, log)
    return learner.policy().digest


def in_process(run: Run, log: Callable[..., None] = lambda scored, report: None) -> str:
    return learn(run, local_pools(run), log)


def local_pools(run: Run) -> tuple[LocalSamplers, LocalRewards, LocalLearner]:
    prepared = prepare(run)
    rewards = LocalRewards(run, prepared.reward_sources)
    return LocalSamplers(run, prepared.base), rewards, LocalLearner(run, prepared.base)


def on_cluster(run: Run, log: Callable[..., None] = lambda scored, report: None) -> str:
    with cluster.pools(prepare(run)) as pools:
        return learn(run, pools, log)
