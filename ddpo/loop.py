"""The main loop. It knows verbs, not Ray; its right margin is the paper's algorithm box.

    symbol        name              what
    c ~ p(c)      draw              prompts of a batch
    x_T ... x_0   rollouts          denoising chains, drawn by p_old
    r(x_0, c)     scored            rewards
    A             advantages        (r - mean_c) / std_c
    p_old         policies          the last lag + 1 published policies
    p             learner           the weights that learn

Batch d is drawn by policy max(0, d - lag), so each of its trajectories is min(d, lag) updates old when it is trained:
that follows from the config, never from which worker was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpo.types import Policy, Prompts, Report, Rollouts, Scored


class Samplers(Protocol):
    """The pool that denoises."""

    def sample(self, prompts: Prompts, policy: Policy) -> Rollouts: ...


class Pending(Protocol):
    """A batch whose rewards are being computed."""

    def wait(self) -> Scored: ...


class Rewards(Protocol):
    """The pools that score."""

    def score(self, rollouts: Rollouts) -> Pending: ...


class Learner(Protocol):
    """The policy gradient; `step` counts the batches learned from and is the version of `policy()`."""

    @property
    def step(self) -> int: ...
    def update(self, scored: Scored, advantages_B: NDArray[np.float64]) -> Report: ...
    def policy(self) -> Policy: ...
    def state(self) -> dict[str, NDArray[Any]]: ...


class Policies:
    """The last lag + 1 published policies by version: all that a batch in flight may be drawn by."""

    def __init__(self, lag: int, published: list[Policy]) -> None:
        self.lag = lag
        self.recent: deque[Policy] = deque(published, maxlen=lag + 1)

    def publish(self, policy: Policy) -> None:
        """p_old <- p."""
        self.recent.append(policy)

    def of_batch(self, number: int) -> Policy:
        """The policy that draws batch `number`, the same before and after a resume."""
        version = max(0, number - self.lag)
        return next(policy for policy in self.recent if policy.version == version)


def run(
    steps: int,
    draw: Callable[[int], Prompts],
    samplers: Samplers,
    rewards: Rewards,
    advantage: Callable[[Scored], NDArray[np.float64]],
    learner: Learner,
    policies: Policies,
    log: Callable[[Scored, Report], None],
) -> None:
    """Learn until `steps` batches are done; goes on from wherever `learner` and `policies` stand."""
    ahead: deque[Pending] = deque()
    drawn = learner.step
    while learner.step < steps:
        while len(ahead) <= policies.lag and drawn < steps:
            prompts = draw(drawn)                                            # c ~ p(c)
            rollouts = samplers.sample(prompts, policies.of_batch(drawn))    # x_T ... x_0 ~ p_old(. | c)
            ahead.append(rewards.score(rollouts))                            # r(x_0, c)
            drawn += 1
        scored = ahead.popleft().wait()
        advantages = advantage(scored)                                       # A = (r - mean_c) / std_c
        report = learner.update(scored, advantages)                          # ascend E[A p / p_old], clipped
        policies.publish(learner.policy())                                   # p_old <- p
        log(scored, report)
        del scored                                                           # its trajectories and images go now
