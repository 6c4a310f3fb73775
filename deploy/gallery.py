"""Grids of fixed prompts from fixed noise, drawn again as the policy changes: what learning looks like.

Consumes policies, produces `images/STEP.png`, `images/grid.json` and `images/scores.json`. Drawing is submitted through
the run's own pools and collected later, so that a grid never holds up a step; one that cannot be fetched is left out.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpo.errors import DeadlineError
from ddpo.loop import Rewards, Samplers
from ddpo.pictures import shift
from ddpo.types import Images, Policy, Prompts, Rollouts, Scored
from deploy.folder import RunFolder, guarded, write

COLUMNS = 4


class Gallery:
    """The grids of a run; `fetch` turns references to images into images, `say` tells of a grid that is left out."""

    def __init__(
        self, prompts: Prompts, samplers: Samplers, rewards: Rewards, fetch: Any, folder: RunFolder,
        say: Callable[[str], None],
    ) -> None:
        self.prompts, self.samplers, self.rewards, self.fetch, self.folder = prompts, samplers, rewards, fetch, folder
        self.say = say
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
        """Write all requested grids; waits for them, and returns those that came with their steps."""
        grids = []
        while self.pending:
            step, rollouts, scoring = self.pending.pop(0)
            scored = scoring.wait()
            try:
                pixels = _in_order(self.prompts.ids, self.fetch(rollouts))
            except DeadlineError as error:
                self.say(f"The grid of step {step} is left out: {error} The run goes on without it.")
            else:
                grids.append((step, self._write(step, pixels, scored)))
        return grids

    def _write(self, step: int, pixels_BYX3: NDArray[np.uint8], scored: Scored) -> Image.Image:
        grid = tile(pixels_BYX3, self.columns)
        with guarded(self.folder.images):
            write(self.folder.images / f"{step:06d}.png", _png(grid))
            write(self.folder.images / "grid.json", json.dumps(self._layout(pixels_BYX3)))
            self._write_scores(step, scored, pixels_BYX3)
        return grid

    def _layout(self, pixels_BYX3: NDArray[np.uint8]) -> dict[str, Any]:
        tile_size = list(pixels_BYX3.shape[1:3])
        return {"prompts": self.prompts.text, "seeds": self.prompts.seeds, "columns": self.columns, "tile": tile_size}

    def _write_scores(self, step: int, scored: Scored, pixels_BYX3: NDArray[np.uint8]) -> None:
        path = self.folder.images / "scores.json"
        scores = json.loads(path.read_text()) if path.exists() else {}
        lists = {
            name: [None if np.isnan(v) else round(float(v), 6) for v in values] for name, values in scored.parts.items()
        }
        captions = {name: info["caption"] for name, info in scored.info.items() if "caption" in info}
        scores[f"{step:06d}"] = {
            "rewards": lists, "distances": self._distances(scored, pixels_BYX3),
            **({"captions": captions} if captions else {}),
        }
        write(path, json.dumps(scores))

    def _distances(self, scored: Scored, pixels_BYX3: NDArray[np.uint8]) -> dict[str, float]:
        """How far the policy has gone: KL to the base, and the images' distance from those of the first policy."""
        first = untile(self.folder.images / "000000.png", pixels_BYX3.shape, self.columns)
        moved = float(shift(pixels_BYX3, first).mean()) if len(first) else math.nan
        kl = [value for value in scored.kl_B if not math.isnan(value)]
        known = {"kl": float(np.mean(kl)) if kl else math.nan, "shift": moved}
        return {name: value for name, value in known.items() if not math.isnan(value)}


def _in_order(ids: Sequence[int], chunks: Sequence[Images]) -> NDArray[np.uint8]:
    """The pixels of all chunks in the order of the prompts; black where an image could not be drawn."""
    drawn = {image: pixels for chunk in chunks for image, pixels in zip(chunk.ids, chunk.pixels_BYX3, strict=True)}
    black = np.zeros(chunks[0].pixels_BYX3.shape[1:], np.uint8)
    return np.stack([drawn.get(image, black) for image in ids])


def tile(pixels_BYX3: NDArray[np.uint8], columns: int) -> Image.Image:
    """Images side by side, row by row, without gaps."""
    count, height, width, _ = pixels_BYX3.shape
    grid = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
    for index, pixels in enumerate(pixels_BYX3):
        grid.paste(Image.fromarray(pixels), (index % columns * width, index // columns * height))
    return grid


def untile(path: Path, shape: tuple[int, ...], columns: int) -> NDArray[np.uint8]:
    """The images (B, Y, X, 3) of a grid on disk; none where there is no grid of these measures."""
    count, height, width, _ = shape
    size = columns * width, math.ceil(count / columns) * height
    if not path.is_file():
        return np.empty((0, *shape[1:]), np.uint8)
    with Image.open(path) as image:
        if image.size != size:
            return np.empty((0, *shape[1:]), np.uint8)
        pixels = np.asarray(image.convert("RGB"))
    corners = [divmod(index, columns) for index in range(count)]
    return np.stack([
        pixels[row * height : (row + 1) * height, column * width : (column + 1) * width] for row, column in corners
    ])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
