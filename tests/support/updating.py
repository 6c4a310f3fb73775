"""One update by hand: a learner, and a batch that its own policy has drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from actors.prompts import Draw, source
from actors.sampler import Sampler
from ddpo.base import find
from ddpo.config import Run
from ddpo.types import Trajectory
from learner.learner import Learner

ADVANTAGES = np.array([1.0, -1.0, 0.5, 2.0, -0.5, 0.3, -2.0, 0.7])
ALL = np.ones(8, bool)


def drawn(run: Run, learner: Learner, batch: int = 0) -> list[Trajectory]:
    sampler = Sampler(run, find(run.policy.base))
    prompts = Draw(run, source(run.prompts))(batch)
    return [sampler.sample(part, learner.policy())[1] for part in prompts.chunks(run.actors.batch)]


def made(make_run: Callable[..., Run], *overrides: str) -> tuple[Run, Learner, list[Trajectory]]:
    run = make_run(*overrides)
    learner = Learner(run, find(run.policy.base))
    return run, learner, drawn(run, learner)
