"""Two ranks of a learner as two processes of this machine, meeting over gloo; and one rank that is led along their way.

From equal weights a part of a minibatch has the same gradient on every rank, bit for bit. So what several ranks sum
differs from one rank's sum by the order of its terms alone, and that has a bound: from n terms g_i no order misses the
exact sum by more than (n - 1) u sum |g_i|, with u half of fp32's epsilon (Higham 2002, section 4.2).

Weights have no such bound: two learners that are a rounding apart draw pictures of which sometimes a pixel is rounded
the other way, and its JPEG is a byte longer. One rank is therefore led: after each comparison it takes the gradient of
the others, has their weights again, bit for bit, and ends with exactly their state and figures.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

from actors.prompts import Draw, source
from actors.sampler import Sampler
from ddpo.base import find
from ddpo.config import Run
from ddpo.errors import DeliveryError
from ddpo.types import Report
from ddpo.work import Lost
from learner.learner import Learner
from learner.ranks import Ranks, meeting_point

ADVANTAGES = np.array([1.0, -1.0, 0.5, 2.0, -0.5, 0.3, -2.0, 0.7])
KEPT = np.array([True] * 6 + [False, True])
WAIT = 120.0  # seconds

Gradient = list[np.ndarray]  # of a minibatch, one array a weight


class Outcome(NamedTuple):
    """What became of two steps."""

    reports: list[Report]
    state: dict[str, np.ndarray]
    gradients: list[Gradient]


def record() -> Callable[[Any], None]:
    """What makes a learner remember the gradient of every minibatch, summed over its ranks; travels to one on Ray."""

    def take(learner: Any) -> None:
        proper, learner.gradients = learner.ranks.sum_gradients, []

        def sum_gradients(weights: Any) -> None:
            weights = list(weights)
            proper(weights)
            learner.gradients.append([weight.grad.numpy().copy() for weight in weights])

        learner.ranks.sum_gradients = sum_gradients

    return take


class Led(Ranks):
    """One rank that compares each of its gradients with that of several ranks, and takes theirs."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], theirs: list[Gradient]) -> None:
        super().__init__()
        self.weights, self.theirs, self.parts = list(weights), iter(theirs), []

    def share(self, parts: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """All parts; the gradient of each is set aside, so that the next one's is not added to it."""
        for place in super().share(parts):
            yield place
            if self.weights[0].grad is not None:  # there is none where parts are only looked at
                self.parts.append([_taken(weight) for weight in self.weights])

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Compare, number by number; raises AssertionError where they differ by more than an order of adding up."""
        terms, unit = len(self.parts), np.finfo(np.float32).eps / 2
        for weight, theirs, *parts in zip(weights, next(self.theirs), *self.parts, strict=True):
            exact, size = np.sum(parts, 0, np.float64), np.sum(np.abs(parts), 0, np.float64)
            apart, bound = np.abs(theirs - exact), (terms - 1) * unit * size
            assert (apart <= bound).all(), f"a gradient of {terms} parts is {apart.max()} away, {bound.max()} allowed"
            weight.grad = torch.tensor(theirs)
        self.parts.clear()


def _taken(weight: torch.nn.Parameter) -> np.ndarray:
    gradient, weight.grad = weight.grad, None
    return gradient.numpy()


def learn(run: Run, ranks: Ranks | None = None, led_by: list[Gradient] | None = None) -> Outcome:
    """Two steps of a rank, or of one that is led; every rank draws the batches itself, and so the same ones."""
    base = find(run.policy.base)
    learner, sampler, draw = Learner(run, base, ranks), Sampler(run, base), Draw(run, source(run.prompts))
    if led_by is not None:
        learner.ranks = Led(learner.denoiser.trainable.values(), led_by)
    proper = learner.ranks.sum_gradients
    record()(learner)
    weights, reports = np.abs(ADVANTAGES) if learner.regression else ADVANTAGES, []
    for step in range(2):
        drawn = [sampler.sample(part, learner.policy())[1] for part in draw(step).chunks(run.actors.batch)]
        reports.append(learner.update(drawn, weights, KEPT))
    learner.ranks.sum_gradients = proper  # the ranks go on to another learner
    return Outcome(reports, learner.state(), learner.gradients)


def rank(number: int, address: tuple[str, int], runs: list[Run], answers: Connection) -> None:
    """What one process does: every run; then a weight of rank 1 is spoiled; then rank 1 dies."""
    ranks = Ranks(number, 2)
    ranks.join(address, torch.device("cpu"), WAIT)
    answers.send([learn(run, ranks) for run in runs])
    answers.send(_spoiled(runs[0], ranks))
    if number == 1:
        os._exit(9)
    try:
        ranks.gather({})
    except Lost as error:
        answers.send(str(error))


def _spoiled(run: Run, ranks: Ranks) -> str:
    class Spoiled(Learner):
        def _publish(self) -> None:
            with torch.no_grad():
                next(iter(self.denoiser.trainable.values()))[0, 0] += 1e-6 * self.ranks.rank * self.step
            super()._publish()

    base = find(run.policy.base)
    learner, sampler, draw = Spoiled(run, base, ranks), Sampler(run, base), Draw(run, source(run.prompts))
    drawn = [sampler.sample(part, learner.policy())[1] for part in draw(0).chunks(run.actors.batch)]
    try:
        learner.update(drawn, ADVANTAGES, KEPT)
    except DeliveryError as error:
        return str(error)
    return ""


def answers(runs: list[Run]) -> Iterator[list[Any]]:
    """What both ranks answered to each of their tasks."""
    point, context = meeting_point("127.0.0.1"), multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=rank, args=(number, ("127.0.0.1", point.port), runs, pipes[number][1]))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    yield [_received(pipe[0]) for pipe in pipes]
    yield [_received(pipe[0]) for pipe in pipes]
    yield [_received(pipes[0][0])]
    for process in processes:
        process.join(WAIT)


def _received(pipe: Connection) -> Any:
    assert pipe.poll(WAIT), "a rank did not answer"
    return pipe.recv()
