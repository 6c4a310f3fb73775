"""The parts of the check by name: a function each, which takes a `Bench`."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu import correctness, models, predecessors, runs, speed
from bench.gpu.measure import Bench

FUNCTIONS: dict[str, Callable[[Bench], None]] = {
    "names": correctness.names, "models": models.build, "gradient": correctness.gradient, "ways": speed.ways,
    "noise": correctness.noise, "learning": speed.learning, "sampling": speed.sampling,
    "ddpo-pytorch": predecessors.ddpo_pytorch, "learns": runs.learns, "repeats": correctness.repeats,
    "ray": runs.on_ray, "profile": speed.profile, "devices": correctness.devices, "bare": predecessors.bare,
    "size": runs.full_size, "options": correctness.options, "rewards": correctness.rewards, "nccl": correctness.nccl,
}
