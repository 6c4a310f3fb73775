"""How fast and how large: sampling, learning, memory, where the time goes, and what each way of computing brings.

Consumes the random model, produces results; waits for nothing. Images a second are those of the paper's run: 50 steps,
guidance, every step trained. Shape letters as elsewhere: B rows, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from actors.prompts import Draw, source
from actors.sampler import Sampler
from bench.gpu.correctness import drawn, given
from bench.gpu.measure import RATES, Bench
from ddpo.backends import set_backends
from ddpo.base import BaseModel
from ddpo.config import GpuConfig, Run
from ddpo.denoiser import Denoiser
from learner.learner import Learner

STEPS = 50  # of the paper's chain
FORWARD, BACKWARD, DECODE = RATES["SD 1.5"]


def half(bench: Bench) -> str:
    """The precision of the recipes; on a CPU the one that is not slow."""
    return "policy.dtype=float32" if bench.dry else "policy.dtype=float16"


def sampling(bench: Bench) -> None:
    """Images a second of the Sampler by batch, its largest memory, and the parts beside the chain."""
    steps = 2 if bench.dry else 10
    for batch in (2,) if bench.dry else (8, 16, 32, 4):
        run, base = bench.run(half(bench), f"policy.steps={steps}", f"actors.batch={batch}",
                              f"learner.images_per_step={batch}", f"learner.minibatch={batch}")
        sampler, policy = Sampler(run, base), Learner(run, base).policy()
        part = Draw(run, source(run.prompts))(0).chunks(batch)[0]
        seconds = bench.seconds(lambda s=sampler, p=part, w=policy: s.sample(p, w), 2)
        latents = torch.randn(batch, *base.latent_CHW, device=bench.device)
        with torch.no_grad():
            decode = bench.seconds(lambda s=sampler, x=latents: s._decode(x), 2)
        allocated, reserved = bench.peak(lambda s=sampler, p=part, w=policy: s.sample(p, w))
        whole = decode + (seconds - decode) * STEPS / steps
        bench.say(f"batch {batch}", batch / whole, "images/s", "at least 3.5 on an H100")
        bench.say(f"batch {batch}: rate", batch * (2 * STEPS * FORWARD + DECODE) / whole, "TFLOP/s")
        bench.say(f"batch {batch}: decoding", decode, "s")
        bench.say(f"batch {batch}: memory allocated", allocated / 1e9, "GB", _planned(run, base, "sampler"))
        bench.say(f"batch {batch}: memory reserved", reserved / 1e9, "GB")
        del sampler


def learning(bench: Bench) -> None:
    """Images a second of the Learner by micro-batch, and its largest memory."""
    steps = 2 if bench.dry else 10
    images = 2 if bench.dry else 8
    run, base = bench.run(half(bench), f"policy.steps={steps}", f"actors.batch={images}",
                          f"learner.images_per_step={images}", f"learner.minibatch={images}")
    trajectories = drawn(run, base, Learner(run, base))
    cases = [(2, False)] if bench.dry else [(8, False), (16, False), (4, False), (4, True), (1, False)]
    for micro, saving in cases:
        options = replace(run.learner, micro_batch=micro, gradient_checkpointing=saving)
        learner = Learner(replace(run, learner=options), base)

        def update(learner: Learner = learner) -> None:
            learner.known.append((trajectories[0].version, trajectories[0].digest))  # the same batch again and again
            learner.update(trajectories, np.linspace(-1, 1, images), np.ones(images, bool))

        allocated, reserved = bench.peak(update)
        seconds = bench.seconds(update, 2, warm=0)
        label = f"micro-batch {micro}" + (", checkpointing" if saving else "")
        rate = images * steps / seconds
        bench.say(label, rate / STEPS, "images/s", "" if saving else "at least 1.7 on an H100")
        bench.say(f"{label}: rate", 2 * rate * BACKWARD, "TFLOP/s")
        bench.say(f"{label}: memory allocated", allocated / 1e9, "GB", _planned(learner.run, base, "learner"))
        bench.say(f"{label}: memory reserved", reserved / 1e9, "GB")
        del learner


def _planned(run: Run, base: BaseModel, process: str) -> str:
    """What `ddpo plan` says."""
    from deploy.planning import memory

    found = getattr(memory, process)(run, base, memory.skeleton(run, base))[0]
    return f"plan: {found.total / 1e9:.2f} GB"


def profile(bench: Bench) -> None:
    """Kernels, and where the time of one guided forward and of one micro-batch goes."""
    rows = 2 if bench.dry else 8
    run, base = bench.run(half(bench))
    denoiser = Denoiser(base, run.policy, run.seed, graphs=True)
    set_backends(run.gpu)
    asked = _alike(base, denoiser, rows)
    _profiled(bench, "forward", _forward(denoiser, asked))
    _profiled(bench, "forward and backward", _both(denoiser, asked))


def _alike(base: BaseModel, denoiser: Denoiser, rows: int) -> tuple[Any, ...]:
    """Rows of one timestep, as in a sampler's chunk."""
    return given(base, denoiser, [min(20, denoiser.config.steps - 1)] * rows)


def _forward(denoiser: Denoiser, asked: tuple[Any, ...]) -> Callable[[], Any]:
    def forward() -> Any:
        with torch.no_grad():
            return denoiser.step(*asked)

    return forward


def _both(denoiser: Denoiser, asked: tuple[Any, ...]) -> Callable[[], Any]:
    def both() -> None:
        gaussian = denoiser.step(*asked)
        (gaussian.log_prob(asked[0]).sum() * 64.0).backward()
        denoiser.learning.take_gradients()

    return both


def _profiled(bench: Bench, label: str, work: Callable[[], Any]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    work()
    bench.wait()
    activities = [ProfilerActivity.CPU] + ([] if bench.dry else [ProfilerActivity.CUDA])
    with profiler(activities=activities) as found:
        work()
        bench.wait()
    if bench.dry:
        return
    kernels = [event for event in found.key_averages() if event.self_device_time_total > 0]
    kernels = [event for event in kernels if str(event.device_type).endswith("CUDA")]
    total = sum(event.self_device_time_total for event in kernels) / 1e3
    seconds = bench.seconds(work)
    bench.say(f"{label}: kernels", sum(event.count for event in kernels))
    bench.say(f"{label}: busy share of the GPU", total / 1e3 / seconds, "", "above 0.9")
    bench.say(f"{label}: time", 1e3 * seconds, "ms")
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:12]:
        share = event.self_device_time_total / 1e3 / total
        bench.say(f"{label}: {event.key[:90]}", f"{share:.1%} in {event.count}")


def ways(bench: Bench) -> None:
    """One guided forward, and forward and backward, of 8 pairs, under one change of the way of computing at a time."""
    rows = 2 if bench.dry else 8
    run, base = bench.run(half(bench))
    for name, change in list(WAYS.items())[: 3 if bench.dry else None]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        denoiser = Denoiser(base, run.policy, run.seed, graphs=name != "kernel by kernel")
        try:
            set_backends(run.gpu)
            change(denoiser)
            asked = _alike(base, denoiser, rows)
            began = bench.seconds(_forward(denoiser, asked), 1, warm=0)
            forward = bench.seconds(_forward(denoiser, asked), 7, warm=2)
            bench.say(f"{name}: forward", 1e3 * forward, "ms", f"{2 * rows * FORWARD / 0.79:.3g} at the peak")
            bench.say(f"{name}: forward's rate", 2 * rows * FORWARD / forward, "TFLOP/s")
            began += bench.seconds(_both(denoiser, asked), 1, warm=0)
            both = bench.seconds(_both(denoiser, asked), 7, warm=2)
            bench.say(f"{name}: forward and backward", 1e3 * both, "ms")
            bench.say(f"{name}: forward and backward's rate", 2 * rows * BACKWARD / both, "TFLOP/s")
            bench.say(f"{name}: first calls", began, "s")
        except Exception as error:  # one way that does not work is a result, not the end of the others
            bench.say(f"{name}: failed", f"{type(error).__name__}: {str(error)[:300]}")
        del denoiser


def _lora_of_peft(denoiser: Denoiser) -> None:
    """LoRA's matrices in fp32 and peft's own forward, as before ddpo.trainable."""
    from peft.tuners.lora.layer import Linear

    for layer in denoiser.unet.modules():
        if isinstance(layer, Linear):
            vars(layer).pop("forward", None)  # what ddpo.trainable put there
    for weight in denoiser.learning.copies.values():
        weight.data = weight.data.float()


def _channels_first(denoiser: Denoiser) -> None:
    denoiser.unet.to(memory_format=torch.contiguous_format)


def _not_repeatable(denoiser: Denoiser) -> None:
    torch.use_deterministic_algorithms(False)


def _tuned(denoiser: Denoiser) -> None:
    torch.backends.cudnn.benchmark = True


def _attention(kind: str) -> Callable[[Denoiser], None]:
    def change(denoiser: Denoiser) -> None:
        set_backends(GpuConfig(attention=kind))

    return change


def _compiled_blocks(denoiser: Denoiser) -> None:
    """Region by region: the same block is compiled once for every shape."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    for module in denoiser.unet.modules():
        if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
            module.compile(dynamic=False)


def _compiled(denoiser: Denoiser) -> None:
    denoiser.unet.compile(dynamic=False)


WAYS: dict[str, Callable[[Denoiser], None]] = {  # what takes longest to start comes last
    "as it is": lambda denoiser: None,
    "kernel by kernel": lambda denoiser: None,
    "LoRA as peft computes it": _lora_of_peft,
    "channels first": _channels_first,
    "not repeatable": _not_repeatable,
    "cuDNN tuned": _tuned,
    "cuDNN attention": _attention("cudnn"),
    "memory-efficient attention": _attention("efficient"),
    "blocks compiled": _compiled_blocks,
    "compiled": _compiled,
}
