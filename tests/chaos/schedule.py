"""What happens to a run, drawn from a seed: faults at moments of its progress, and a reward that is slow or fails.

Consumes a seed, produces a `Schedule`; waits for nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LATEST = 7  # steps learned before the latest strike
ALONE = ("driver", "preemption")  # what can be done to a run in one process: both end its driver
FAULTS = ("sampler", "reward", "crew", "learner", "node", "scale", *ALONE)
TROUBLES = ("none", "slow", "fails")
STARTING = "at the start"


@dataclass(frozen=True)
class Fault:
    """A strike, at the first victim that lives from its moment on.

    kind:   one of FAULTS; a crew is all workers of the reward's pool at once
    after:  steps learned before it strikes; 0 is from the first batch being drawn, -1 while the run still starts
    delay:  seconds then
    pick:   chooses the victim among those that are alive, in [0, 1)
    """

    kind: str
    after: int
    delay: float
    pick: float

    def __str__(self) -> str:
        moment = STARTING if self.after < 0 else f"step {self.after}"
        return f"{self.kind} ({moment} + {self.delay:.1f} s)"


@dataclass(frozen=True)
class Schedule:
    """alone: in one process, without Ray; workers: of the reward; trouble: what the reward does, one of TROUBLES"""

    seed: int
    alone: bool
    lag: int
    ranks: int
    workers: int
    trouble: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        place = "one process" if self.alone else f"Ray, ranks={self.ranks}, workers={self.workers}"
        faults = ", ".join(str(fault) for fault in self.faults)
        return f"#{self.seed} {place}, lag={self.lag}, reward: {self.trouble}; {faults}"


def draw(seed: int) -> Schedule:
    """The schedule of a seed, one to four faults in the order of their moments."""
    dice = random.Random(seed)
    alone, lag, ranks = dice.random() < 0.15, dice.choice([0, 2]), dice.choice([1, 1, 1, 2])
    workers, trouble, kinds = dice.choice([2, 2, 5]), dice.choice(TROUBLES), ALONE if alone else FAULTS
    faults = sorted((_fault(dice, kinds) for _ in range(dice.randint(1, 4))), key=lambda one: (one.after, one.delay))
    return Schedule(seed, alone, lag, 1 if alone else ranks, workers, trouble, tuple(faults))


def calm(lag: int, ranks: int) -> Schedule:
    """To which nothing happens; in one process where it has one rank, which gives the same numbers."""
    return Schedule(10**6 + 10 * lag + ranks, ranks == 1, lag, ranks, 2, "none", ())


def _fault(dice: random.Random, kinds: tuple[str, ...]) -> Fault:
    after = dice.randint(-1, LATEST)
    return Fault(dice.choice(kinds), after, dice.uniform(0.0, 12.0 if after < 0 else 2.0), dice.random())
