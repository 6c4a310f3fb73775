"""The base and the tuned model as other programs would see them: plain diffusers, the same noise for both.

Consumes a checkpoint, produces uint8 images; waits for nothing.

Shape letters: B images, Y X pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.errors import DdpoError
from deploy.sample import draw, pipeline, precision, unet

BASE, TUNED = POLICIES = ("base", "tuned")


@dataclass(frozen=True)
class Sampler:
    """How images are drawn: "training" as in the run, "deployment" without noise between fewer steps."""

    name: str
    steps: int
    eta: float

    @property
    def words(self) -> str:
        """For people: `50 steps, eta 1`."""
        return f"{self.steps} steps, eta {self.eta:g}"


def samplers(run: Run, deploy_steps: int | None) -> list[Sampler]:
    """The run's own, and the deployment's: by default half of the run's steps, at most 20."""
    fewer = deploy_steps or max(1, min(20, run.policy.steps // 2))
    return [Sampler("training", run.policy.steps, run.policy.eta), Sampler("deployment", fewer, 0.0)]


class Models:
    """p_base and p_tuned in one pipeline: LoRA switched off or on, or one UNet put in the other's place."""

    def __init__(self, folder: Path, run: Run, base: BaseModel) -> None:
        self.run, self.base, self.pipe = run, base, pipeline(folder, run, base)
        self.unets = {}
        if run.policy.train == "full":
            place = self.pipe.device
            untrained = unet(base, base.folder, precision(run.policy.dtype, place.type)).to(place)
            self.unets = {TUNED: self.pipe.unet, BASE: untrained}

    def draw(self, policy: str, text: Sequence[str], seeds: Sequence[int], sampler: Sampler) -> NDArray[np.uint8]:
        """One batch of images, (B, Y, X, 3), each from its own seed; raises DdpoError where the decoder overflows."""
        self._become(policy)
        guidance = self.run.policy.guidance
        pixels_BYX3 = draw(self.pipe, self.base, text, seeds, guidance, sampler.steps, sampler.eta)
        if not np.isfinite(pixels_BYX3).all():
            raise DdpoError(
                f"the {policy} model gave NaN or infinity with {sampler.words}, so these images have no pixels. If the "
                "tuned one alone does, its training has diverged: evaluate an earlier checkpoint."
            )
        return (pixels_BYX3 * 255).round().astype(np.uint8)

    def _become(self, policy: str) -> None:
        if self.unets:
            self.pipe.unet = self.unets[policy]
        elif policy == TUNED:
            self.pipe.enable_lora()
        else:
            self.pipe.disable_lora()
