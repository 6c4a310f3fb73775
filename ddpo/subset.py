"""What a step will train, known before it is drawn: the order of its images, and the timesteps of each.

Consumes a `Run`, its seed and the step's number, and nothing else, so that samplers keep what the learner will ask for;
produces the learner's order and the samplers' masks; waits for nothing. No torch.

Shape letters: B images of a batch, T denoising steps, S = T + 1 states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddpo.config import Run, trained_timesteps, window

SHUFFLE = 2  # the learner's stream of random numbers; actors.prompts has 0 and 1


def stream(run: Run, step: int, place: int, kind: int = 0) -> np.random.Generator:
    """Random numbers of a step: kind 0 orders an inner epoch, kind 1 is RWR's noise after `place` pairs."""
    return np.random.Generator(np.random.Philox(key=[run.seed, SHUFFLE], counter=[step, place, kind, 0]))


def trainable(run: Run, stochastic: Sequence[int]) -> list[int]:
    """Of a schedule's steps with noise, those in learner.window."""
    return [index for index in stochastic if index in window(run)]


def chosen(run: Run, step: int, epoch: int, steps: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """DDPO's inner epoch: images in the order in which it takes them, each with those of `steps` that it trains.

    All images, whatever is masked later: what is masked is known only when all is drawn and scored.
    """
    draws, count = stream(run, step, epoch), trained_timesteps(run)
    order = draws.permutation(run.learner.images_per_step)
    return {int(image): np.sort(draws.permutation(steps)[:count]) for image in order}


def trained(run: Run, step: int, steps: Sequence[int]) -> NDArray[np.bool_]:
    """Steps of each image's chain that an inner epoch trains, (B, T); none for RWR, which trains on no chain."""
    trained_BT = np.zeros((run.learner.images_per_step, run.policy.steps), bool)
    if not run.learner.algorithm.startswith("rwr"):
        for epoch in range(run.learner.inner_epochs):
            for image, some in chosen(run, step, epoch, steps).items():
                trained_BT[image, some] = True
    return trained_BT


def held(run: Run, trained_BT: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """States x_T ... x_0 that training asks for, (B, S): before and after every trained step; for RWR x_0 alone."""
    none_B1 = np.zeros((len(trained_BT), 1), bool)
    held_BS = np.hstack([trained_BT, none_B1]) | np.hstack([none_B1, trained_BT])
    held_BS[:, -1] |= run.learner.algorithm.startswith("rwr")
    return held_BS


def states_held(run: Run) -> float:
    """States of an image in its trajectory, mean over the first step's (all steps' are alike but for chance)."""
    return float(held(run, trained(run, 0, window(run))).sum(1).mean())
