"""Which stage limits a run, and what would help.

Consumes what the stages took in a step and how many workers they have, produces a sentence and the factor that it
promises; waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

STEPS = 20  # that are looked at
CLOSE = 1.05  # stages nearer than this are equally slow


@dataclass(frozen=True)
class Advice:
    """limits: a pool, "learner", "lag" or "gpu"; more: workers (or lag) to add; faster: the factor to expect, 1 for
    none."""

    limits: str
    more: int
    faster: float

    def __str__(self) -> str:
        """For a person."""
        gain = f"about {self.faster:.1f} times as fast"
        if self.limits == "lag":
            return f"the stages wait for one another: lag {self.more} higher, {gain}"
        if self.limits == "gpu":
            return ("samplers and learner share a GPU, where they take turns by time slice (there is no MPS), so lag "
                    "gains little: with a GPU for each (actors.gpus=1 learner.gpus=1) both would work at once")
        if self.limits == "learner":
            return ("the learner limits you; more samplers or reward workers would not help, learner.ranks on more "
                    "GPUs or, where memory allows, a larger learner.micro_batch would")
        return f"{self.limits} {'limit' if self.limits == 'samplers' else 'limits'} you: +{self.more} workers, {gain}"


def share_gpu(sampler: float, learner: float) -> bool:
    """Whether a sampler and the learner, which reserve so many GPUs, find room on one, where Ray then puts them."""
    return min(sampler, learner) > 0 and sampler + learner <= 1


def advise(
    work: Mapping[str, float], workers: Mapping[str, int], learn: float, lag: int, chunks: int, shared: bool = False
) -> Advice:
    """What limits the time of a step.

    work: worker-seconds a step of every pool; learn: seconds of the update; chunks: a step's; shared: whether samplers
    and learner compute on one GPU, where what they do at the same time takes each of them longer. With the stages'
    times t_i = work_i / n_i and the time of one chunk c_i = work_i / chunks, a batch is under way for
    L = max t_i + sum of the other pools' c_i + learn, since its chunks stream from pool to pool, and a step takes
    max(max t_i, learn, L / (lag + 1)): no stage is faster than itself, and lag + 1 batches are under way at most.
    """
    step = partial(_step, work, learn, chunks)
    times = {name: seconds / workers[name] for name, seconds in work.items()} | {"learner": learn}
    slowest = max(times, key=lambda name: times[name])
    now = step(workers, lag)
    if shared and (now > CLOSE * times[slowest] or (lag and slowest in ("samplers", "learner"))):
        return Advice("gpu", 0, 1.0)
    if now > CLOSE * times[slowest]:
        more = math.ceil(step(workers, 0) / times[slowest] / CLOSE) - 1 - lag
        return Advice("lag", more, now / step(workers, lag + more))
    if slowest == "learner":
        return Advice("learner", 0, 1.0)
    rest = max(seconds for name, seconds in times.items() if name != slowest)
    more = max(1, math.ceil(work[slowest] / max(rest, 1e-9)) - workers[slowest])
    more = min(more, 4 * workers[slowest])  # beyond that, measure again
    return Advice(slowest, more, now / step({**workers, slowest: workers[slowest] + more}, lag))


def _step(work: Mapping[str, float], learn: float, chunks: int, workers: Mapping[str, int], lag: int) -> float:
    """Seconds of a step."""
    times = {name: seconds / workers[name] for name, seconds in work.items()}
    slowest = max(times, key=lambda name: times[name])
    under_way = times[slowest] + sum(work[name] / chunks for name in work if name != slowest) + learn
    return max(times[slowest], learn, under_way / (lag + 1))


def of(rows: Sequence[Mapping[str, Any]], lag: int, chunks: int, shared: bool = False) -> Advice | None:
    """Advice from lines of metrics.jsonl: from the last steps with as many workers as now; None for one process, and
    where all workers of a pool are being started again."""
    workers = rows[-1].get("workers") if rows else None
    if not workers or not all(workers.values()):
        return None
    alike = [row["seconds"] for row in rows[-STEPS:] if row.get("workers") == workers]
    mean = {name: sum(row.get(name, 0.0) for row in alike) / len(alike) for name in alike[-1]}
    work = {name: mean["sample"] if name == "samplers" else mean[f"score {name}"] for name in workers}
    return advise(work, workers, mean["learn"], lag, chunks, shared)
