"""Fixtures: a tiny random model and small runs, shared by all rooms."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.cluster import QUIET, thread_settings

os.environ.update(QUIET | thread_settings(1))
os.environ.pop("PYTHONWARNINGS", None)  # here warnings are errors

import pytest
import tiny

from ddpo.config import Run, parse


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Stable Diffusion."""
    return tiny.make(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_run(model: Path) -> Callable[..., Run]:
    """make_run("lag=2", ...): a small run on the tiny model, changed by overrides."""

    def make(*overrides: str) -> Run:
        return parse(small(model), list(overrides), "test")

    return make


def small(model: Path) -> dict[str, Any]:
    """A run of two steps: 8 images in chunks of 4, 5 denoising steps, two updates a step."""
    return {
        "name": "small",
        "steps": 2,
        "policy": {"base": str(model), "steps": 5},
        "prompts": {"kind": "list", "items": ["a cat", "a dog"]},
        "actors": {"count": 1, "batch": 4},
        "rewards": {"jpeg": {"kind": "compressibility"}},
        "advantage": {"min_count": 4},
        "learner": {"images_per_step": 8, "minibatch": 4, "micro_batch": 4, "lr": 1e-3},
        "images": {"count": 2},
        "checkpoints": {"every": 1, "keep": 5},
    }
