"""Whole runs: ours through the real command line, TRL's in its own environment.

Consumes a run file, produces images per second. Ours are counted over the whole main loop, from the first draw to the
last update, so that what lag k samples ahead is not given away; TRL's without its first epoch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from actors.prompts import ANIMALS
from bench.trl_environment import Layout, Work, run_trl
from ddpo.config import Run


class BenchError(RuntimeError):
    """A run of the benchmark failed."""


def ours(recipe: Path, *words: str) -> float:
    """Train and return images per second, with everything that a step includes."""
    with tempfile.TemporaryDirectory(prefix="ddpo-bench-") as folder:
        command = [sys.executable, "-m", "deploy", "train", str(recipe), f"--runs={folder}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            raise BenchError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads((Path(folder) / "bench" / "result.json").read_text())["images_per_second"]


def trl(run: Run, model: Path, train_batch: int, layouts: list[Layout], cache: Path) -> float:
    """TRL's best rate over the given layouts, for the same images, timesteps and updates."""
    work = Work(
        steps=run.policy.steps, guidance=run.policy.guidance, images_per_epoch=run.learner.images_per_step,
        sample_batch=run.actors.batch, train_batch=train_batch, epochs=3, lora_rank=run.policy.lora_rank,
        updates_per_epoch=run.learner.images_per_step // run.learner.minibatch, lr=run.learner.lr,
        clip=run.learner.clip,
    )
    rates = [run_trl(model, ANIMALS, _fitted(work, layout), layout, cache)["images_per_second"] for layout in layouts]
    return max(rates)


def _fitted(work: Work, layout: Layout) -> Work:
    """The same work cut so that every process has whole batches."""
    return replace(work, sample_batch=min(work.sample_batch, work.images_per_epoch // layout.processes))


def one_process(cores: int) -> list[Layout]:
    """TRL in one process with all cores, idle threads sleeping or spinning."""
    return [Layout(1, cores), Layout(1, cores, "")]


def many_processes(cores: int) -> list[Layout]:
    """TRL with a process a core. Its ranks never average LoRA's gradients, so this is its speed, not its algorithm."""
    return [Layout(cores, 1)]
