"""A training loop that can be stopped and continued, in one process or in several that share each batch.

Consumes: the parts of a training run (anything with `state_dict` and `load_state_dict`) and a checkpoint's path.
Produces: step numbers; a checkpoint every few minutes, on SIGTERM (then the process ends) and after the last step.
Waits for: the other processes, once a step, where `torchrun` started several.
"""

import argparse
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

SAVE_EVERY = 180.0  # seconds

Parts = dict[str, "torch.nn.Module | torch.optim.Optimizer"]


def loop(path: Path, steps: int, parts: Parts) -> Iterator[int]:
    """Yield the steps still to do; the same command continues where the last one was stopped."""
    start = restore(path, parts)
    rank, ranks = place()
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    saved = time.monotonic()
    for step in range(start, steps):
        torch.manual_seed(step * ranks + rank)
        yield step
        ending = anyone(bool(stopped))
        if ending or time.monotonic() - saved > SAVE_EVERY:
            save(path, step + 1, parts)
            saved = time.monotonic()
        if ending:
            raise SystemExit(f"Stopped by SIGTERM after step {step}; run the same command to continue.")
    save(path, steps, parts)
    signal.signal(signal.SIGTERM, before)


def restore(path: Path, parts: Parts) -> int:
    """Load a checkpoint into the parts where there is one; return the number of steps it has done."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["steps"]


def save(path: Path, steps: int, parts: Parts) -> None:
    """Write a checkpoint beside the old one, then swap; the first process alone writes."""
    if place()[0]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save({"steps": steps} | {name: part.state_dict() for name, part in parts.items()}, fresh)
    fresh.replace(path)


def rate(step: int, steps: int, peak: float, warm: int = 100) -> float:
    """Learning rate: a linear rise over `warm` steps, then a linear fall to nought."""
    return peak * min((step + 1) / warm, 1 - step / steps)


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def place() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def anyone(word: bool) -> bool:
    """Ask all processes; true if any says yes, so that they stop after the same step."""
    if place()[1] == 1:
        return word
    votes = torch.tensor(int(word))
    dist.all_reduce(votes)
    return votes.item() > 0


def agreed(value: float) -> float:
    """Take the mean of what the processes measured, so that all go on with the same number."""
    total = torch.tensor(value)
    if place()[1] > 1:
        dist.all_reduce(total)
    return total.item() / place()[1]


def descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, value: torch.Tensor) -> None:
    """Take one step down the loss, on gradients averaged over the processes and clipped to norm 1."""
    value.backward()
    if place()[1] > 1:
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.div_(place()[1]).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def wanted(program: str, about: str | None, steps: int) -> argparse.Namespace:
    """Read the command line of a recipe that trains one model: out, art, work, steps."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--art", type=Path, help="a folder that holds the packages (named @iconify-json)")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "menagerie", help="checkpoints, art")
    parser.add_argument("--steps", type=int, default=steps)
    return parser.parse_args()
