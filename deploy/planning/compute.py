"""How much a run computes, and how long GPUs take for it at a share of what their data sheets promise.

Consumes a `Run` and the `Work` that was counted on its model (memory.py), produces sums, times, and what a deadline is
too short for; waits for nothing. Of rewards nothing is counted. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ddpo.config import Run, chunks, trained_timesteps
from deploy.report.scale import duration

PEAK = {  # TFLOP/s in half precision, dense, of data sheets, by Ray's names of accelerators
    "T4": 65, "V100": 125, "A10G": 70, "L4": 121, "L40S": 362, "A100": 312, "A100-40G": 312, "A100-80G": 312,
    "H100": 990, "H200": 990,
}
USUAL = (0.25, 0.40)  # shares of the peak that such networks reach
SLOW = 0.15  # a share that a sound run stays above: deadlines are checked with it


@dataclass(frozen=True)
class Work:
    """FLOP (a multiplication and an addition are two) of the policy's networks, guidance's second row among them.

    step:    one denoising step of one image
    decode:  one image by the autoencoder
    pair:    forward and backward of one (image, timestep)
    """

    step: float
    decode: float
    pair: float

    def chunk(self, run: Run) -> float:
        """Of one call of a sampler. Where KL has a price the base model is asked too."""
        return run.actors.batch * self._image(run, asked=run.advantage.kl > 0)

    def longest(self, run: Run) -> float:
        """Of the longest call of a sampler: the base model is asked too for a chunk of the grids' fixed prompts."""
        tiles = min(run.actors.batch, len(run.images.prompts) or run.images.count)
        return max(self.chunk(run), tiles * self._image(run, asked=run.policy.train == "lora"))

    def _image(self, run: Run, asked: bool) -> float:
        return run.policy.steps * self.step * (2 if asked else 1) + self.decode

    def micro_batch(self, run: Run) -> float:
        """Of one forward and backward pass of a rank."""
        return run.learner.micro_batch * self.pair

    def sampling(self, run: Run) -> float:
        """Of a step of training, on all samplers together."""
        return chunks(run) * self.chunk(run)

    def learning(self, run: Run) -> float:
        """Of a step of training, on all ranks together."""
        learner, pairs = run.learner, run.learner.images_per_step * trained_timesteps(run)
        again = "recompute" in (learner.old_log_probs, learner.correction == "decoupled" and learner.proximal)
        return pairs * (learner.inner_epochs * self.pair + again * self.step)


@dataclass(frozen=True)
class Compute:
    """flop: by what for, of a step's sampling and learning, one chunk, one micro-batch. seconds: of a step's, by kind
    of GPU, at the USUAL shares of its peak; empty where no kind is known. dtype: policy.dtype."""

    flop: dict[str, float]
    seconds: dict[str, dict[str, list[float]]]
    dtype: str


def compute(run: Run, work: Work, kinds: Mapping[str, Collection[str]]) -> Compute:
    """All of it, on the kinds of GPUs by crew."""
    flop = {"sampling": work.sampling(run), "learning": work.learning(run), "chunk": work.chunk(run),
            "micro_batch": work.micro_batch(run)}
    each = {"sampling": ("samplers", flop["sampling"] / _cards(run.actors.count, run.actors.gpus)),
            "learning": ("learner", flop["learning"] / _cards(run.learner.ranks, run.learner.gpus))}
    seconds = {
        kind: {what: [count / (share * PEAK[kind] * 1e12) for share in USUAL]
               for what, (crew, count) in each.items() if kind in kinds[crew]}
        for kind in sorted({*kinds["samplers"], *kinds["learner"]} & set(PEAK))
    }
    return Compute(flop, seconds, run.policy.dtype)


def named(run: Run) -> dict[str, set[str]]:
    """The kinds of GPUs that the run itself names, by crew."""
    return {"samplers": {run.actors.accelerator} - {""}, "learner": {run.learner.accelerator} - {""}}


def _cards(processes: int, gpus: float) -> int:
    """GPUs that they have together: those that share one are no faster for it."""
    return max(1, math.ceil(processes * min(1.0, gpus)))


def lines(found: Compute) -> Iterator[tuple[str, str]]:
    """For people: (what, how much)."""
    flop = {name: _flop(count) for name, count in found.flop.items()}
    yield "compute", (f"sampling {flop['sampling']} a step (a chunk: {flop['chunk']}), learning {flop['learning']} "
                      f"(a micro-batch: {flop['micro_batch']}); rewards are not counted")
    slower = "; float32 takes several times that" if found.dtype == "float32" else ""
    low, high = (f"{share:.0%}" for share in USUAL)
    for kind, parts in found.seconds.items():
        times = [f"{name} {' to '.join(map(duration, reversed(seconds)))}" for name, seconds in parts.items()]
        yield f"on {kind}", f"{', '.join(times)} a step, at {high} to {low} of {PEAK[kind]} TFLOP/s{slower}"


def _flop(count: float) -> str:
    unit, factor = next((pair for pair in (("PFLOP", 1e15), ("TFLOP", 1e12)) if count >= pair[1]), ("GFLOP", 1e9))
    return f"{count / factor:.3g} {unit}"


def on_gpus(run: Run) -> bool:
    """Whether samplers or learner are to have GPUs."""
    return run.policy.device != "cpu" and run.actors.gpus + run.learner.gpus > 0


def too_short(run: Run, work: Work, kinds: Mapping[str, Collection[str]]) -> list[str]:
    """Deadlines that a sound run would not hold: at a SLOW share of the peak of the slowest GPU that the crew may get,
    `kinds` by crew, or of the slowest that is known. Each with what to write."""
    return [*_too_short(run, "actors", f"a chunk of {run.actors.batch} images", work.longest(run), kinds["samplers"],
                        "draw fewer images together (actors.batch)"),
            *_too_short(run, "learner", f"a micro-batch of {run.learner.micro_batch} pairs", work.micro_batch(run),
                        kinds["learner"], "learn from fewer pairs together (learner.micro_batch)")]


def _too_short(run: Run, table: str, what: str, flop: float, kinds: Collection[str], instead: str) -> Iterator[str]:
    wants = getattr(run, table)
    if not wants.gpus:
        return
    known = set(kinds) & set(PEAK)
    kind = min(known or PEAK, key=lambda name: PEAK[name])
    needed = flop / (SLOW * PEAK[kind] * 1e12)
    if needed < wants.timeout:
        return
    unnamed = "" if known else (
        f' No GPU is named whose speed is known, so it is the slowest; {table}.accelerator = "A100" would name one.'
    )
    yield (
        f"{table}.timeout = {wants.timeout:g} s is too short for {what}: its {_flop(flop)} take {duration(needed)} on "
        f"a {kind} at {SLOW:.0%} of {PEAK[kind]} TFLOP/s, and it would be given up again and again.{unnamed} Write "
        f"{table}.timeout={math.ceil(needed / 300) * 600}, or {instead}."
    )
