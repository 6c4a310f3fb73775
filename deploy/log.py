"""Everything that is told about a run while it goes on: metrics, progress, W&B. Outside the main loop.

Consumes `Scored` and `Report`, produces lines of metrics.jsonl, a progress bar or plain lines, W&B scalars and images.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from ddpo.config import Run, plain
from ddpo.errors import InputError
from ddpo.types import Report, Scored
from deploy.folder import RunFolder


def record(scored: Scored, report: Report, queries: int, seconds: dict[str, float]) -> dict[str, Any]:
    """One step as an object of metrics.jsonl."""
    kept = scored.rewards_B[scored.kept_B]
    kl = scored.kl_B if math.isnan(report.base_kl) else [report.base_kl]
    return {
        "step": report.version,
        "reward_queries": queries,
        "reward_mean": float(kept.mean()),
        "reward_std": float(kept.std()),
        "rewards": {name: _mean(values) for name, values in scored.parts.items()},
        "rewards_std": {name: _std(values) for name, values in scored.parts.items()},
        "info": _info_means(scored),
        "loss": report.loss,
        "clip_fraction": report.clip_fraction,
        "approx_kl": report.approx_kl,
        "ratio_min": report.ratio_min,
        "ratio_max": report.ratio_max,
        "mean_abs_log_prob_delta": report.mean_abs_log_prob_delta,
        "max_abs_log_prob_delta": report.max_abs_log_prob_delta,
        "effective_sample_size": report.effective_sample_size,
        "log_prob_delta_by_timestep": {str(t): delta for t, delta in report.log_prob_delta_by_timestep.items()},
        "first_clip_fraction": _number(report.first_clip_fraction),
        "base_kl": _mean(kl),
        "grad_norm": report.grad_norm,
        "updates": report.updates,
        "pairs": report.pairs,
        "lag": report.lag,
        "images": len(scored.prompts.ids) - len(scored.masked),
        "images_masked": len(scored.masked),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers that are there; None where there is none."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known else None


def _std(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known)) if known else None


def _info_means(scored: Scored) -> dict[str, float | None]:
    """Means of what a reward reports as numbers, such as BERTScore's precision."""
    return {
        f"{name}/{key}": _mean(values) for name, info in scored.info.items() for key, values in info.items()
        if all(value is None or isinstance(value, int | float) for value in values)
    }


class Progress:
    """A bar on a terminal, a line a step elsewhere."""

    def __init__(self, run: Run, done: int) -> None:
        self.run, self.first, self.start = run, done, time.perf_counter()
        self.bar = self._bar(done) if sys.stderr.isatty() else None

    def _bar(self, done: int) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"),
            TimeElapsedColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True))
        bar.start()
        self.task = bar.add_task(self.run.name, total=self.run.steps, completed=done, now="first batch...")
        return bar

    def show(self, metrics: dict[str, Any]) -> str:
        """Report one finished step; returns how it went."""
        step, spread = metrics["step"], metrics["reward_std"]
        now = f"reward {metrics['reward_mean']:.3f} ± {spread:.3f}  {metrics['seconds']['total']:.1f} s/step"
        left = (time.perf_counter() - self.start) / (step - self.first) * (self.run.steps - step)
        text = f"{now}  {clock(left)} left"
        if self.bar:
            self.bar.update(self.task, completed=step, now=text)
        else:
            print(f"step {step}/{self.run.steps}  {text}", file=sys.stderr, flush=True)
        return text

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Wandb:
    """Weights & Biases behind the same log; does nothing where wandb.mode is off."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self.session: Any = None
        if run.wandb.mode != "off":
            import wandb

            self.wandb = wandb
            try:
                self.session = wandb.init(
                    project=run.wandb.project, name=folder.path.name, id=folder.path.name, resume="allow",
                    mode=run.wandb.mode,  # type: ignore[arg-type]
                    dir=folder.path, config=plain(run), settings=wandb.Settings(silent=True),
                )
            except wandb.Error as error:
                raise InputError(
                    f'wandb.mode = "{run.wandb.mode}": W&B did not start: {error} The run does not need it: its '
                    'numbers are in metrics.jsonl. Log in, or write wandb.mode = "offline" or "off".'
                ) from None

    def scalars(self, metrics: dict[str, Any]) -> None:
        """Log a step's numbers."""
        if self.session:
            flat = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
            for table in ("rewards", "seconds"):
                flat |= {f"{table}/{name}": value for name, value in metrics[table].items()}
            self.session.log(flat, step=metrics["step"])

    def images(self, step: int, grid: Image.Image, latest: int) -> None:
        """Log a grid; W&B takes no step older than its newest, so the grid carries its own."""
        if self.session:
            picture = self.wandb.Image(grid, caption=f"policy {step}")
            self.session.log({"images": picture, "images_step": step}, step=latest)

    def close(self) -> None:
        """Finish the W&B run."""
        if self.session:
            self.session.finish()
