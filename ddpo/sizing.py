"""How many workers a pool needs: it grows at once and shrinks after a cool-down.

Consumes how long the workers of a pool were busy and what waits, produces their number; waits for nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

FULL, SLACK = 0.85, 0.6  # a pool grows where its workers are busier than this, and shrinks where they are idler


@dataclass(frozen=True)
class Size:
    """From how many to how many workers, and for how many seconds a pool is too large before it shrinks."""

    low: int
    high: int
    cooldown: float = 60.0


class Load:
    """What was seen of a pool over the last `cooldown` seconds."""

    def __init__(self, cooldown: float) -> None:
        self.cooldown = cooldown
        self.seen: deque[tuple[float, float]] = deque()
        self.too_many_since: float | None = None

    def note(self, now: float, worked: float) -> None:
        """Take down the time, and for how many seconds all workers together were busy until now."""
        self.seen.append((now, worked))
        while len(self.seen) > 2 and self.seen[1][0] < now - self.cooldown:
            self.seen.popleft()

    @property
    def workers(self) -> float:
        """How many were busy, mean over what was seen."""
        if len(self.seen) < 2:
            return 0.0
        (then, before), (now, worked) = self.seen[0], self.seen[-1]
        return (worked - before) / (now - then)

    def goal(self, now: float, waiting: float, present: int, size: Size) -> int:
        """How many there should be from now on; `waiting` is the queue's work in seconds of one worker."""
        goal = wanted(self.workers, waiting / self.cooldown, present, size)
        if goal >= present:
            self.too_many_since = None
            return goal
        since = self.too_many_since = now if self.too_many_since is None else self.too_many_since
        if now - since < self.cooldown:
            return present
        self.too_many_since = None
        return goal


def wanted(load: float, backlog: float, present: int, size: Size) -> int:
    """How many workers the work needs.

    load:    workers that were busy, mean over the last seconds
    backlog: workers that would clear the queue within the cool-down
    Where all are busy the load cannot be known, only that it is larger: the pool then grows by a fifth, and again.
    """
    need = load + backlog
    grown, shrunk = math.ceil(need / FULL), math.ceil(need / SLACK)
    goal = grown if grown > present else min(shrunk, present)
    return min(max(goal, size.low), size.high)
