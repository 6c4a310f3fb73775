"""What a step moves over the network, for `ddpo plan` and `ddpo simulate` alike.

Consumes a `Run`, its base model's description and how many samplers there are, produces bytes; waits for nothing.
"""

from __future__ import annotations

from ddpo.base import BaseModel
from ddpo.config import Run, chunks
from deploy.prepare import chunk_bytes


def network(run: Run, base: BaseModel, policy: float, samplers: int) -> dict[str, float]:
    """Bytes a step by what they are, if every worker and every rank of the learner is on a node of its own.

    trajectories: every chunk's, to every rank; policies: one of `policy` bytes to every sampler that draws a chunk
    images: every image to the first stage of every reward; what stages hand on, such as captions, is small
    gradients: between the ranks, at every update: a ring of n moves 2 (n - 1) times what it sums
    """
    ranks, updates = run.learner.ranks, run.learner.images_per_step // run.learner.minibatch * run.learner.inner_epochs
    moved = {
        "trajectories": ranks * trajectories(run, base),
        "policies": min(chunks(run), samplers) * policy,
        "images": len(run.rewards) * pixels(run, base),
        "gradients": 2 * (ranks - 1) * updates * policy,
    }
    return {name: count for name, count in moved.items() if count}


def trajectories(run: Run, base: BaseModel) -> float:
    """Bytes of all chunks' trajectories of a step."""
    return chunks(run) * chunk_bytes(run, base)


def pixels(run: Run, base: BaseModel) -> float:
    """Bytes of a step's images: three a pixel."""
    return run.learner.images_per_step * 3.0 * base.image_size**2
