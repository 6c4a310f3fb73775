"""What Stable Diffusion 1.5 would have a GPU do, counted without one: a row a piece of work, for docs/benchmarks.md.

    python -m bench.gpu.counts

Consumes nothing, produces lines of a table; waits for nothing. Uploads are copies to the device; the host waits for it
at blocking uploads, at downloads, and where it asks for a number. Another commit is counted with this folder copied
into its `bench/`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from bench.gpu import shapes
from bench.gpu.pretend import Counts, PretendedGpu
from ddpo.condition import Condition
from ddpo.denoiser import Denoiser
from ddpo.objective import Tally
from deploy.facts import _commit
from learner.learner import Learner
from learner.losses import Batch

HEAD = "| commit | SD 1.5 in float16 | operations | of them casts | GB moved | uploads | downloads | waits |"


def main() -> None:
    """Print the table."""
    folder = Path(tempfile.mkdtemp(prefix="ddpo-counts-"))
    run, base = shapes.run_of(shapes.describe(folder / "sd15", "sd15"), "policy.steps=4", *shapes.of_images(8))
    with shapes.without_weights(), PretendedGpu() as gpu:
        learner = Learner(run, base)
        batch = batch_of(learner, shapes.trajectory(run, base, learner, 8))
        pairs_P2 = np.array([(image, index) for index in range(2) for image in range(8)])
        (_, part), _ = of_update(gpu, learner, batch, pairs_P2)
        with torch.no_grad(), gpu.counting() as rows:
            call(learner.denoiser, 8)
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
    row("a call of the UNet, 8 rows", rows)
    row("a micro-batch of 8 pairs (16 rows), forward and backward", part)


def row(what: str, found: Counts) -> None:
    """Print a line of the table."""
    cells = (_commit()[:7], what, f"{found.operations.total():,}", found.casts, f"{found.moved / 1e9:.1f}",
             len(found.uploads), len(found.downloads), found.waits.total())
    print("| " + " | ".join(map(str, cells)) + " |")


def batch_of(learner: Learner, drawn: Any) -> Batch:
    """The learner's batch of one trajectory."""
    learner.drawn_BT = drawn.log_probs_BT
    return learner._batch([drawn], np.linspace(-1, 1, len(drawn.ids)))


def of_update(
    gpu: PretendedGpu, learner: Learner, batch: Batch, pairs_P2: NDArray[np.int64]
) -> tuple[list[Counts], Counts]:
    """What each micro-batch of an update does, from when its pairs are there until the next one's are asked for; and
    what is done besides them. Of an update that is not its step's first, of which more is noted."""
    each: list[Counts] = []
    share: Callable[..., Any] = learner.ranks.share

    def counted(given: Any) -> Iterator[Any]:
        for part in share(given):
            with gpu.counting() as counts:
                yield part
            each.append(counts)

    with mock.patch.object(learner.ranks, "share", counted), gpu.counting() as rest:
        learner._minibatch(batch, pairs_P2, len(pairs_P2), Tally(batch.dimensions))
    return each, rest


def call(denoiser: Denoiser, rows: int) -> None:
    """One call of the UNet by the policy, without guidance."""
    side, width = denoiser.unet.config.sample_size, denoiser.unet.config.cross_attention_dim
    sizes = (rows, 4, side, side), (rows,), (rows, 77, width), (rows, 0)
    x_BCHW, timestep_B, text_BLD, pooled_BP = (torch.empty(size, device=denoiser.device) for size in sizes)
    denoiser._predict(x_BCHW, timestep_B.long(), Condition(text_BLD, pooled_BP))


if __name__ == "__main__":
    main()
