"""What an evaluation leaves: eval.csv, summary.json, a grid a trial, eval.html; each file whole or not there.

Consumes trials suite by suite, produces files after each, so that a long evaluation that is stopped keeps what it has.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpo.errors import InputError
from deploy.evaluation.models import BASE, POLICIES, TUNED
from deploy.evaluation.page import page, pairs
from deploy.evaluation.trial import Trial, figures, rows
from deploy.folder import write
from deploy.gallery import tile

COLUMNS, LARGEST = 8, 256  # tiles across a grid: four pairs; pixels of a tile


class Evaluation:
    """The output folder and everything that goes into it; `facts` are the head of summary.json."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self.trials: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.pairs: list[str] = []

    def add(self, trials: Sequence[Trial]) -> None:
        """Take in the trials of one suite and write everything anew; raises InputError."""
        for trial in trials:
            self.trials.append(figures(trial, self.facts["seed"]))
            both = zip(*(rows(trial, policy) for policy in POLICIES), strict=True)
            self.rows += [row for pair in both for row in pair]
            self.pairs.append(pairs(trial, self._unit()))
            with writable(self.folder):
                write(self.folder / f"{trial.suite.name}-{trial.sampler.name}.png", _grid(trial))
        with writable(self.folder):
            write(self.folder / "eval.csv", _table(self.rows))
            write(self.folder / "summary.json", json.dumps(self.summary, indent=1, allow_nan=False))
            write(self.folder / "eval.html", page(self.summary, self.pairs))

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return {**self.facts, "trials": self.trials}

    def _unit(self) -> str:
        """Of the scores under a picture, where there is one score alone."""
        units = [entry["unit"] for entry in self.facts["rewards"].values()]
        return units[0] if len(units) == 1 else ""


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn a failed write into a message."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out: {folder} cannot be written ({error.strerror or error}), and what is drawn could not be kept. Free "
            "space there, or give another folder."
        ) from None


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns in the order of their first appearance, since suites may have rewards that others lack."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _grid(trial: Trial) -> bytes:
    """Pairs of base and tuned, row by row: the first image of every prompt."""
    first = [trial.prompts.text.index(text) for text in dict.fromkeys(trial.prompts.text)]
    both = np.stack([trial.images[BASE][first], trial.images[TUNED][first]], axis=1).reshape(
        -1, *trial.images[BASE].shape[1:]
    )
    grid = tile(np.stack([_small(pixels) for pixels in both]), min(COLUMNS, len(both)))
    file = io.BytesIO()
    grid.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _small(pixels_YX3: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels_YX3)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(image)
