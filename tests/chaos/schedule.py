"""What happens to a run, drawn from a seed: faults at moments of its progress, and a reward that is slow or fails.

Consumes a seed, produces a `Schedule`; waits for nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

STEPS = 8  # of the run that is disturbed
ALONE = ("driver", "preemption")  # what can be done to a run in one process: both end its driver
FAULTS = ("sampler", "reward", "learner", "node", "scale", *ALONE)
TROUBLES = ("none", "slow", "fails")


@dataclass(frozen=True)
class Fault:
    """kind: one of FAULTS; after: steps learned before it strikes, -1 while the run still starts; delay: seconds then;
    pick: chooses the victim among those that are alive, in [0, 1)"""

    kind: str
    after: int
    delay: float
    pick: float

    def __str__(self) -> str:
        moment = "at the start" if self.after < 0 else f"step {self.after}"
        return f"{self.kind} ({moment} + {self.delay:.1f} s)"


@dataclass(frozen=True)
class Schedule:
    """alone: in one process, without Ray; trouble: what the reward does, one of TROUBLES"""

    seed: int
    alone: bool
    lag: int
    ranks: int
    trouble: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        place = "one process" if self.alone else f"Ray, ranks={self.ranks}"
        faults = ", ".join(str(fault) for fault in self.faults)
        return f"#{self.seed} {place}, lag={self.lag}, reward: {self.trouble}; {faults}"


def draw(seed: int) -> Schedule:
    """The schedule of a seed, one to four faults in the order of their moments."""
    dice = random.Random(seed)
    alone, lag, ranks = dice.random() < 0.15, dice.choice([0, 2]), dice.choice([1, 1, 1, 2])
    kinds = ALONE if alone else FAULTS
    faults = sorted((_fault(dice, kinds) for _ in range(dice.randint(1, 4))), key=lambda one: (one.after, one.delay))
    return Schedule(seed, alone, lag, 1 if alone else ranks, dice.choice(TROUBLES), tuple(faults))


def _fault(dice: random.Random, kinds: tuple[str, ...]) -> Fault:
    after = dice.randint(-1, STEPS - 1)
    return Fault(dice.choice(kinds), after, dice.uniform(0.0, 12.0 if after < 0 else 2.0), dice.random())
