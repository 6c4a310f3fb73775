"""Our sampler and learner against bare loops of the same network calls, in one process and in turns.

Consumes a model folder, produces `Pairing`s: our seconds over bare seconds for the same work, round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from actors.prompts import Draw, source
from actors.sampler import Sampler
from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.threads import threads
from ddpo.types import Trajectory
from learner.learner import Learner


@dataclass(frozen=True)
class Pairing:
    """Two ways of the same work, timed in turns: speed of ours relative to the other, a ratio per round."""

    name: str
    ratios: list[float]
    ours: str
    other: str


def pair(
    name: str, ours: Callable[[], object], other: Callable[[], object], rounds: int, unit: str, count: float
) -> Pairing:
    """Time both in turns after one warm-up each; ratios above 1 mean that ours is faster."""
    clock(ours)
    clock(other)
    seconds = [(clock(ours), clock(other)) for _ in range(rounds)]
    rates = [f"{count / float(np.median(column)):.2f} {unit}/s" for column in zip(*seconds, strict=True)]
    return Pairing(name, [theirs / mine for mine, theirs in seconds], *rates)


def clock(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sampler(run: Run, base: BaseModel, rounds: int) -> Pairing:
    """Chains of our sampler against UNet and VAE calls on the same shapes, with nothing else in between."""
    ours, learner = Sampler(run, base), Learner(run, base)
    part = Draw(run, source(run.prompts))(0).chunks(run.actors.batch)[0]
    policy = learner.policy()
    rows = run.actors.batch
    text_BLD = ours.text(part.text).text_BLD.repeat(2, 1, 1)
    x, latents = torch.randn(2 * rows, *base.latent_CHW), torch.randn(rows, *base.latent_CHW)

    def bare() -> None:
        with threads(run.actors.threads), torch.no_grad():
            for timestep in ours.denoiser.schedule.timesteps_T:
                ours.denoiser.unet(x, timestep.expand(2 * rows), text_BLD, return_dict=False)
            ours.vae.decode(latents, return_dict=False)

    name = f"sampler / bare UNet and VAE calls, batch {rows}"
    return pair(name, lambda: ours.sample(part, policy), bare, rounds, "images", rows)


def learner(run: Run, base: BaseModel, rounds: int) -> Pairing:
    """Updates of our learner against forward and backward over as many pairs in the same micro-batches."""
    ours, drawn = Learner(run, base), trajectories(run, base)
    count = run.learner.images_per_step
    advantages = np.linspace(-1, 1, count)
    rows, micro_batches = run.learner.micro_batch, count * run.policy.steps // run.learner.micro_batch
    x = torch.randn(2 * rows, *base.latent_CHW)
    text_BLD = torch.tensor(drawn[0].text_BLD[:1]).repeat(2 * rows, 1, 1)
    timesteps = torch.randint(1000, (2 * rows,))

    def bare() -> None:
        with threads(run.learner.threads):
            for _ in range(micro_batches):
                ours.denoiser.unet(x, timesteps, text_BLD, return_dict=False)[0].mean().backward()
            ours.optimizer.zero_grad(set_to_none=True)

    def update() -> None:
        ours.known.append((drawn[0].version, drawn[0].digest))  # the same batch again and again
        ours.update(drawn, advantages, np.ones(count, bool))

    name = f"learner / bare forward and backward, micro-batch {rows}"
    return pair(name, update, bare, rounds, "pairs", count * run.policy.steps)


def trajectories(run: Run, base: BaseModel) -> list[Trajectory]:
    """One batch, drawn by the starting policy."""
    drawing, policy = Sampler(run, base), Learner(run, base).policy()
    return [drawing.sample(part, policy)[1] for part in Draw(run, source(run.prompts))(0).chunks(run.actors.batch)]
