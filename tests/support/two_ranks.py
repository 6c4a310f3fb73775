"""Two ranks of a learner as two processes of this machine, meeting over gloo."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

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

Outcome = tuple[list[Report], dict[str, np.ndarray]]


def learn(run: Run, ranks: Ranks) -> Outcome:
    """Two steps; every rank draws the batches itself, and so the same ones."""
    base = find(run.policy.base)
    learner, sampler, draw = Learner(run, base, ranks), Sampler(run, base), Draw(run, source(run.prompts))
    weights, reports = np.abs(ADVANTAGES) if learner.regression else ADVANTAGES, []
    for step in range(2):
        drawn = [sampler.sample(part, learner.policy())[1] for part in draw(step).chunks(run.actors.batch)]
        reports.append(learner.update(drawn, weights, KEPT))
    return reports, learner.state()


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
