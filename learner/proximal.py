"""Log-probs of the weights that a step started from: the proximal policy of the decoupled objective, around which it is
clipped, and at lag 0 the policy that drew the images.

Consumes a `Batch` and the step's plan of minibatches, produces the batch of every update; waits for nothing.
Shape letters as in learner.learner: B images, T steps, P pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpo.config import LearnerConfig
from ddpo.denoiser import Denoiser
from learner.losses import Batch, Pairs, micro_batches
from learner.ranks import Ranks

Plan = Sequence[NDArray[np.int64]]


def centred(
    denoiser: Denoiser, options: LearnerConfig, batch: Batch, lag: int, plan: Plan, ranks: Ranks
) -> Iterator[Batch]:
    """The batch of each update with the log-probs to clip around; the first is asked for before any update is made."""
    decoupled = options.correction == "decoupled"
    if options.old_log_probs == "recompute":
        again_BT = recomputed(denoiser, batch, plan, options.micro_batch, ranks)
        batch = replace(batch, log_probs_BT=again_BT, proximal_BT=again_BT)
    elif decoupled and options.proximal == "recompute":
        batch = replace(batch, proximal_BT=recomputed(denoiser, batch, plan, options.micro_batch, ranks))
    interpolate = decoupled and options.proximal == "loglinear"
    for done in range(len(plan)):
        yield replace(batch, alpha=alpha(lag, done, len(plan))) if interpolate else batch


@torch.no_grad()
def recomputed(denoiser: Denoiser, batch: Batch, plan: Plan, size: int, ranks: Ranks) -> Tensor:
    """log p of the weights as they are, (B, T), NaN where the plan trains nothing, on this rank.

    In the very micro-batches that will be trained, so that on a CPU the first update's ratio is exactly one. Pairs of
    an inner epoch that an earlier one has brought are not asked for again.
    """
    log_prob_BT = torch.full_like(batch.log_probs_BT, torch.nan)
    asked_BT = torch.zeros(log_prob_BT.shape, dtype=torch.bool)
    shares = (ranks.share(micro_batches(minibatch, size)) for minibatch in plan)
    for _, pairs_P2 in itertools.chain.from_iterable(shares):
        if not asked_BT[pairs_P2.unbind(1)].all():
            pairs = Pairs.on(denoiser.device, pairs_P2)
            gaussian = denoiser.step(*batch.before(pairs))
            log_prob_BT[pairs.image_there_P, pairs.index_there_P] = gaussian.log_prob(batch.after(pairs))
            asked_BT[pairs_P2.unbind(1)] = True
    return log_prob_BT


def alpha(lag: int, done: int, updates: int) -> float:
    """How far the step's start lies on the way from the policy that drew the images to the one after `done` updates.

    log p_prox = log p_old + alpha (log p - log p_old),  alpha = (v_prox - v_old) / (v - v_old)

    AReaL's log-linear approximation (docs/algorithms/prox_approx.md), with versions v counted in updates and not in
    steps: so it is exact before the step's first update, and at lag 0, where the images are from the step's start.
    """
    return lag * updates / (lag * updates + done) if lag else 0.0
