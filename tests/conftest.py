"""Fixtures: a tiny random model and small runs, shared by all rooms."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from deploy.cluster import QUIET, thread_settings

os.environ.update(QUIET | thread_settings(1))
os.environ.pop("PYTHONWARNINGS", None)  # here warnings are errors

import pytest
import tiny

from ddpo.config import Run
from ddpo.runfile import parse


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Stable Diffusion."""
    return tiny.make(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def architectures(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each architecture: "SD 1", "SD 2" (v-prediction) and "SDXL"."""
    folder = tmp_path_factory.mktemp("architectures")
    return {"SD 1": model, "SD 2": tiny.make_2(folder / "2"), "SDXL": tiny.make_xl(folder / "xl")}


@pytest.fixture
def make_run(model: Path) -> Callable[..., Run]:
    """make_run("lag=2", ...): a small run on the tiny model, changed by overrides."""

    def make(*overrides: str) -> Run:
        return parse(tiny.run(model), list(overrides), "test")

    return make
