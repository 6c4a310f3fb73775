"""How far fp32 alone may take two computations of one thing apart: the scale of tolerances, on any processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddpo.types import Trajectory
from learner.learner import Learner


def standardised(learner: Learner, trajectories: Sequence[Trajectory]) -> float:
    """Of (x - mean) / std at the step of least noise, where x and mean agree in most digits: eps max |x| / min sigma.

    A gradient of log p has this factor, and with it this relative rounding.
    """
    largest = max(float(np.abs(trajectory.states_NCHW).max()) for trajectory in trajectories)
    return float(np.finfo(np.float32).eps * largest / learner.denoiser.schedule.sigma_T.min())


def log_prob(learner: Learner, trajectories: Sequence[Trajectory]) -> float:
    """Of a log-prob, a mean over D dimensions with a rounding each, which leaves a sqrt(D)-th of one."""
    return standardised(learner, trajectories) / trajectories[0].states_NCHW[0].size ** 0.5
