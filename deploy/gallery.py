"""Grids of fixed prompts from fixed noise, drawn again as the policy changes: what learning looks like.

Consumes policies, produces `images/STEP.png`, `images/grid.json` and `images/scores.json`. Drawing is submitted through
the run's own pools and collected later, so that a grid never holds up a step.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpo.loop import Rewards, Samplers
from ddpo.types import Policy, Prompts, Rollouts, Scored
from deploy.folder import RunFolder, guarded, write

COLUMNS = 4


class Gallery:
    """The grids of a run; `fetch` turns a chunk's image references into images."""

    def __init__(self, prompts: Prompts, samplers: Samplers, rewards: Rewards, fetch: Any, folder: RunFolder) -> None:
        self.prompts, self.samplers, self.rewards, self.fetch, self.folder = prompts, samplers, rewards, fetch, folder
        self.columns = min(COLUMNS, len(prompts.ids))
        self.pending: list[tuple[int, Rollouts, Any]] = []

    def has(self, step: int) -> bool:
        """Whether the grid of that step is on disk."""
        return (self.folder.images / f"{step:06d}.png").is_file()

    def request(self, policy: Policy) -> None:
        """Have the grid of a policy drawn and scored."""
        rollouts = self.samplers.sample(self.prompts, policy)
        self.pending.append((policy.version, rollouts, self.rewards.score(rollouts)))

    def collect(self) -> list[tuple[int, Image.Image]]:
        """Write all requested grids; waits for them, and returns them with their steps."""
        grids = []
        while self.pending:
            step, rollouts, scoring = self.pending.pop(0)
            scored = scoring.wait()
            pixels = np.concatenate([images.pixels_BYX3 for images in self.fetch(rollouts)])
            grids.append((step, self._write(step, pixels, scored)))
        return grids

    def _write(self, step: int, pixels_BYX3: NDArray[np.uint8], scored: Scored) -> Image.Image:
        grid = tile(pixels_BYX3, self.columns)
        with guarded(self.folder.images):
            write(self.folder.images / f"{step:06d}.png", _png(grid))
            write(self.folder.images / "grid.json", json.dumps(self._layout(pixels_BYX3)))
            self._write_scores(step, scored)
        return grid

    def _layout(self, pixels_BYX3: NDArray[np.uint8]) -> dict[str, Any]:
        tile_size = list(pixels_BYX3.shape[1:3])
        return {"prompts": self.prompts.text, "seeds": self.prompts.seeds, "columns": self.columns, "tile": tile_size}

    def _write_scores(self, step: int, scored: Scored) -> None:
        path = self.folder.images / "scores.json"
        scores = json.loads(path.read_text()) if path.exists() else {}
        lists = {
            name: [None if np.isnan(v) else round(float(v), 6) for v in values] for name, values in scored.parts.items()
        }
        captions = {name: info["caption"] for name, info in scored.info.items() if "caption" in info}
        scores[f"{step:06d}"] = {"rewards": lists, **({"captions": captions} if captions else {})}
        write(path, json.dumps(scores))


def tile(pixels_BYX3: NDArray[np.uint8], columns: int) -> Image.Image:
    """Images side by side, row by row, without gaps."""
    count, height, width, _ = pixels_BYX3.shape
    grid = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
    for index, pixels in enumerate(pixels_BYX3):
        grid.paste(Image.fromarray(pixels), (index % columns * width, index // columns * height))
    return grid


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
