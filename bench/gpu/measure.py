"""What every part of the check has in hand: the device, a folder for models, a clock, and where results go.

Consumes nothing, produces a `Result` a line: printed at once, and kept in a file that outlives a part that is ended.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ddpo.base import BaseModel, find
from ddpo.config import Run
from ddpo.runfile import load
from ddpo.source import ROOT

RECIPE = ROOT / "deploy" / "recipes" / "compressibility.toml"
RATES = {"SD 1.5": (0.804, 1.714, 2.5)}  # TFLOP: a row forward, forward and backward with LoRA, an image decoded


@dataclass(frozen=True)
class Result:
    """One measured value; expected: what it should be, in words, empty where nothing is."""

    part: str
    what: str
    value: float | str
    unit: str
    expected: str


class Bench:
    """One part's surroundings. dry: on a CPU with networks of a few thousand parameters, to see that it runs."""

    def __init__(self, part: str, folder: Path, dry: bool) -> None:
        self.part, self.folder, self.dry = part, folder, dry
        self.device = torch.device("cpu" if dry else "cuda")
        gc.collect()  # what the part before has left

    def say(self, what: str, value: float | str, unit: str = "", expected: str = "") -> None:
        """Print a result and keep it."""
        result = Result(self.part, what, value, unit, expected)
        shown = f"{value:.4g}" if isinstance(value, float) else value
        wanted = f"   (expected: {expected})" if expected else ""
        print(f"[{self.part}] {what}: {shown} {unit}{wanted}", flush=True)
        with (self.folder / f"{self.part}.jsonl").open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def model(self, name: str = "sd15") -> Path:
        """The folder of a random model that `models` has made."""
        return self.folder / name

    def run(self, *overrides: str, model: str = "sd15") -> tuple[Run, BaseModel]:
        """The paper's run on Stable Diffusion's size, changed by overrides; in a dry run a small part of it."""
        words = [f"policy.base={self.model(model)}", "prompts.kind=simple_animals", *overrides]
        run = load(RECIPE, words)
        return run, find(run.policy.base)

    def wait(self) -> None:
        """Until the GPU has done all it was given."""
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 3, warm: int = 1) -> float:
        """Median of one call, after calls that are not counted."""
        for _ in range(warm):
            work()
        return statistics.median(self._once(work) for _ in range(1 if self.dry else repeats))

    def _once(self, work: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def peak(self, work: Callable[[], object]) -> tuple[float, float]:
        """Largest bytes allocated and reserved while it ran, with what was there before; 0 on a CPU."""
        if self.dry:
            work()
            return 0.0, 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated()), float(torch.cuda.max_memory_reserved())
