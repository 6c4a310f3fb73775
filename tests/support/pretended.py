"""What the sampler and the learner do on a GPU that computes nothing, for a process that does nothing else.

Networks have the published sizes; rows are few, since their number changes no count but that of bytes. Faults are put
in by name, to see that they are found.
"""

from __future__ import annotations

import functools
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tiny
import torch

from actors.prompts import Draw, source
from actors.sampler import Sampler
from bench.gpu import counts, shapes
from bench.gpu.pretend import Counts, PretendedGpu
from ddpo.denoiser import Denoiser
from learner import losses
from learner.learner import Learner
from learner.losses import Batch
from learner.proximal import recomputed

IMAGES = 2
LIFE = ExitStack()  # of the process


@functools.cache
def gpu() -> PretendedGpu:
    """Entered for as long as the process lives."""
    LIFE.enter_context(shapes.without_weights())
    return LIFE.enter_context(PretendedGpu())


@functools.cache
def folder(name: str) -> Path:
    """The model's; "tiny" is one of a few thousand weights."""
    place = Path(LIFE.enter_context(tempfile.TemporaryDirectory())) / name
    return tiny.make(place) if name == "tiny" else shapes.describe(place, name)


@functools.cache
def made(name: str, *words: str) -> Learner:
    """A learner of the paper's run on that model, of four steps and two images."""
    place, _ = folder(name), gpu()
    run, base = shapes.run_of(place, "policy.steps=4", *shapes.of_images(IMAGES), *words)
    return Learner(run, base)


def answer(work: Callable[..., Any], *given: str, **options: Any) -> Any:
    """What the work gives, or its error in a form that leaves the process."""
    try:
        return work(*given, **options)
    except Exception as error:
        traceback.print_exc()
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def batch_of(learner: Learner) -> Batch:
    """A batch of zeros."""
    base = shapes.find(learner.run.policy.base, weights=False)
    return counts.batch_of(learner, shapes.trajectory(learner.run, base, learner, IMAGES))


def learned(name: str, *words: str, fault: str = "", parts: int = 1) -> tuple[list[Counts], Counts]:
    """Of one update: what each micro-batch does, and what is done besides them."""
    learner = made(name, *words)
    pairs_P2 = np.array([(image, index) for index in range(parts) for image in range(IMAGES)])
    with FAULTS[fault](learner):
        return counts.of_update(gpu(), learner, batch_of(learner), pairs_P2)


def trained(name: str, *words: str) -> list[int]:
    """Two steps of sampler and learner, the second one of a learner that was restored: the versions of the policy."""
    learner, versions = made(name, *words), []
    sampler = Sampler(learner.run, shapes.find(learner.run.policy.base, weights=False))
    for step in range(2):
        prompts = Draw(learner.run, source(learner.run.prompts))(step).chunks(IMAGES)[0]
        _, drawn, _ = sampler.sample(prompts, learner.policy())
        versions.append(learner.update([drawn], np.array([1.0, -1.0]), np.ones(IMAGES, bool)).version)
        learner.restore(step + 1, learner.state(), list(learner.known))
    return versions


def asked_again(name: str, *words: str) -> Counts:
    """Log-probs of a micro-batch, recomputed before an update."""
    learner = made(name, *words)
    batch = batch_of(learner)
    with gpu().counting() as found:
        recomputed(learner.denoiser, batch, [np.array([(0, 0), (1, 0)])], IMAGES, learner.ranks)
    return found


def sampled(name: str, *words: str, fault: str = "") -> dict[str, Counts]:
    """What a chunk does, by its parts: "text" of all prompts, a "step" of the chain, "decode"; of the tiny model also
    the "kl" of a step to the base model."""
    learner = made(name, *words)
    found: dict[str, Counts] = {}
    with mock.patch("actors.sampler.Denoiser", lambda *_, **__: learner.denoiser):
        sampler = Sampler(learner.run, shapes.find(learner.run.policy.base, weights=False))
    prompts = Draw(learner.run, source(learner.run.prompts))(0).chunks(IMAGES)[0]
    with torch.no_grad(), FAULTS[fault](learner):
        with gpu().counting() as found["text"]:
            c, null = sampler.text(prompts.text), sampler.text.null().expand(IMAGES)
        chains = {}
        for steps, step in ((1, 0), (2, 0), (1, -1)) if name == "tiny" else ((1, 0), (2, 0)):
            sampler.run = replace(sampler.run, policy=replace(sampler.run.policy, steps=steps))
            with gpu().counting() as chains[steps, step]:
                states_BSCHW, _, _ = sampler._chain(replace(prompts, step=step), c, null)
        for part, chain in (("step", (2, 0)), ("kl", (1, -1))):
            if chain in chains:
                found[part] = chains[chain] - chains[1, 0]
        with gpu().counting() as found["decode"]:
            sampler._decode(states_BSCHW[:, -1])
    return found


def forwards(name: str, *words: str, fault: str = "") -> tuple[Counts, Counts, int, int]:
    """One call of the UNet on 8 rows with LoRA and without; changes of type within transformer blocks; targets."""
    from diffusers.models.attention import BasicTransformerBlock

    denoiser = made(name, *words).denoiser
    blocks = [module for module in denoiser.unet.modules() if isinstance(module, BasicTransformerBlock)]
    within: list[int] = []
    hooks = [block.register_forward_pre_hook(lambda *_: within.append(-gpu().counts.casts)) for block in blocks]
    hooks += [block.register_forward_hook(lambda *_: within.append(gpu().counts.casts)) for block in blocks]
    with torch.no_grad(), FAULTS[fault](made(name, *words)):
        with gpu().counting() as with_lora:
            counts.call(denoiser, 8)
        with denoiser.as_base(), gpu().counting() as without:
            counts.call(denoiser, 8)
    for hook in hooks:
        hook.remove()
    return with_lora, without, sum(within), len(denoiser.trainable) // 2


def _instead(module: Any, name: str, after: Callable[[Any], Any]) -> Callable[[Learner], AbstractContextManager[Any]]:
    """A function of a module does something more with its result."""
    own = getattr(module, name)
    return lambda _: mock.patch.object(module, name, lambda *given, **options: after(own(*given, **options)))


def _also(work: Callable[[Any], object]) -> Callable[[Any], Any]:
    def after(result: Any) -> Any:
        work(result)
        return result

    return after


@contextmanager
def _schedule_on_cpu(learner: Learner) -> Iterator[None]:
    denoiser, schedule = learner.denoiser, learner.denoiser.schedule
    denoiser.schedule = schedule.to(torch.device("cpu"))
    try:
        yield
    finally:
        denoiser.schedule = schedule


@contextmanager
def _lora_in_fp32(learner: Learner) -> Iterator[None]:
    copies = learner.denoiser.learning.copies.values()
    dtypes = [copy.dtype for copy in copies]
    for copy in copies:
        copy.data = copy.data.float()
    try:
        yield
    finally:
        for copy, dtype in zip(copies, dtypes, strict=True):
            copy.data = copy.data.to(dtype)


@contextmanager
def _peft_in_fp32(learner: Learner) -> Iterator[None]:
    """peft's own forward: its matrices are fp32, so that it casts the input, and the result back."""
    from peft.tuners.lora.layer import Linear

    layers = [module for module in learner.denoiser.unet.modules() if isinstance(module, Linear)]
    ours = [vars(layer).pop("forward") for layer in layers]
    try:
        with _lora_in_fp32(learner):
            yield
    finally:
        for layer, forward in zip(layers, ours, strict=True):
            layer.forward = forward  # type: ignore[method-assign]


@contextmanager
def _counts_on_cpu(learner: Learner) -> Iterator[None]:
    for weight in learner.denoiser.trainable.values():
        learner.optimizer.state[weight] = {"step": torch.ones(()), "exp_avg": torch.zeros_like(weight),
                                           "exp_avg_sq": torch.zeros_like(weight)}
    try:
        yield
    finally:
        learner.optimizer.state.clear()


FAULTS: dict[str, Callable[[Learner], AbstractContextManager[Any]]] = {
    "": lambda _: nullcontext(),
    "a number is asked for": _instead(losses, "outside", _also(lambda cut_P: cut_P.sum().item())),
    "a condition on the device": _instead(losses, "outside", _also(lambda cut_P: bool(cut_P.any()))),
    "a mask chooses": _instead(losses, "outside", _also(lambda cut_P: cut_P[cut_P])),
    "nonzero": _instead(losses, "outside", _also(lambda cut_P: cut_P.nonzero())),
    "a download": _instead(losses, "outside", _also(lambda cut_P: cut_P.cpu())),
    "a small upload": _instead(losses, "outside", _also(lambda cut_P: torch.tensor([1.0], device=cut_P.device))),
    "an index on the CPU": _instead(losses, "outside", _also(lambda cut_P: cut_P[torch.tensor([0])])),
    "uploads are waited for": lambda _: mock.patch.object(
        losses, "uploaded", lambda tensor, device: tensor.to(device)),
    "uploads from pageable memory": lambda _: mock.patch.object(
        losses, "uploaded", lambda tensor, device: tensor.to(device, non_blocking=True)),
    "a mean on the CPU": _instead(losses, "outside", _also(lambda cut_P: cut_P * torch.ones(len(cut_P)))),
    "the schedule on the CPU": _schedule_on_cpu,
    "LoRA in fp32": _lora_in_fp32,
    "peft's LoRA in fp32": _peft_in_fp32,
    "the count of updates on the CPU": _counts_on_cpu,
    "steps are uploaded": lambda _: mock.patch.object(
        torch, "full", lambda size, value, own=torch.full, device=None: own(size, value) if device is None
        else torch.tensor([value] * size[0], device=device)),
    "steps are asked for": lambda _: mock.patch.object(
        Denoiser, "step", lambda self, x, index, *rest, own=Denoiser.step: own(self, x, index + int(index[0]), *rest)),
}
