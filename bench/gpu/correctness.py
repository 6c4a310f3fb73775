"""Is what the GPU computes right: names, gradients by precision, noise by batch shape, repeatability, CPU against GPU.

Consumes the random model and menagerie, produces results; waits for nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from actors.prompts import Draw, source
from actors.sampler import Sampler
from bench.gpu.measure import Bench
from bench.gpu.models import perturb
from ddpo.base import BaseModel, find
from ddpo.condition import Condition
from ddpo.config import Run
from ddpo.denoiser import Denoiser
from ddpo.objective import ddpo_is
from ddpo.types import Trajectory
from learner.learner import Learner
from learner.proximal import recomputed

DTYPES = ("float16", "bfloat16")


def names(bench: Bench) -> None:
    """The card, the versions, what torch takes for attention, and the two ceilings: matrix products and memory."""
    bench.say("torch", torch.__version__)
    if bench.dry:
        return
    properties = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    bench.say("card and driver", subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip())
    bench.say("CUDA", str(torch.version.cuda))
    bench.say("cuDNN", str(torch.backends.cudnn.version()))
    bench.say("memory", properties.total_memory / 1e9, "GB")
    bench.say("matmul may use TF32", str(torch.backends.cuda.matmul.allow_tf32), "", "False")
    bench.say("cuDNN may use TF32", str(torch.backends.cudnn.allow_tf32), "", "True")
    with torch.device("cuda"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            a, b = (torch.randn(8192, 8192).to(dtype) for _ in range(2))
            rate = 2 * 8192**3 / bench.seconds(lambda a=a, b=b: [a @ b for _ in range(5)], 5) * 5 / 1e12
            bench.say(f"matrix product, {str(dtype)[6:]}", rate, "TFLOP/s")
        source_, target = torch.empty(2**30, dtype=torch.int32), torch.empty(2**30, dtype=torch.int32)
        bench.say("copy", 2 * 2**32 / bench.seconds(lambda: target.copy_(source_), 5) / 1e12, "TB/s")


def _given(base: BaseModel, denoiser: Denoiser, steps: list[int]) -> tuple[Tensor, Tensor, Condition, Condition]:
    """Random rows, the same for every precision: x_t, step indices, prompts and empty prompts."""
    generator, rows = torch.Generator().manual_seed(2), len(steps)
    width = denoiser.unet.config.cross_attention_dim

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(denoiser.device)

    c, null = (Condition(drawn(rows, 77, width), drawn(rows, 0)) for _ in range(2))
    return drawn(rows, *base.latent_CHW), torch.tensor(steps, device=denoiser.device), c, null


def gradient(bench: Bench) -> None:
    """DDPO's gradient in half precision against fp32, with the loss as the recipe divides it and scaled up by 2^16."""
    run, base = bench.run("policy.dtype=float32")
    steps = [1, 15, 30, 45]
    exact: Tensor | None = None
    target: Tensor | None = None
    for dtype in ("float32", *(DTYPES[1:] if bench.dry else DTYPES)):  # a CPU takes minutes for float16
        denoiser = Denoiser(base, replace(run.policy, dtype=dtype, device=bench.device.type), run.seed)
        perturb(denoiser)
        given = _given(base, denoiser, steps)
        if target is None:
            noise = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(3)).to(denoiser.device)
            with torch.no_grad():
                target = denoiser.step(*given).sample(noise)
        for scale in (1.0, 2.0**16) if dtype != "float32" else (1.0,):
            found = _gradient(denoiser, given, target, 3200, scale)
            exact = found if exact is None else exact
            cosine = float(found @ exact / (found.norm() * exact.norm()).clamp(min=1e-300))
            label = f"{dtype}, loss x 2^{int(np.log2(scale))}"
            bench.say(f"{label}: |g| / |g fp32|", float(found.norm() / exact.norm()))
            bench.say(f"{label}: cosine with fp32", cosine, "", "" if dtype == "float32" else "above 0.99")
            bench.say(f"{label}: elements that are 0", float((found == 0).double().mean()))
        del denoiser


def _gradient(denoiser: Denoiser, given: tuple[Tensor, ...], target: Tensor, pairs: int, scale: float) -> Tensor:
    """All trainable gradients in one fp64 vector, unscaled."""
    weights = list(denoiser.trainable.values())
    log_prob_P = denoiser.step(*given).log_prob(target)  # type: ignore[arg-type]
    advantage_P = torch.tensor([1.0, -1.0, 0.5, -2.0], device=denoiser.device)
    loss_P = ddpo_is(log_prob_P, log_prob_P.detach(), advantage_P, 1e-4)
    grads = torch.autograd.grad(loss_P.sum() / pairs * scale, weights)
    return torch.cat([grad.flatten() for grad in grads]).double() / scale


def drawn(run: Run, base: BaseModel, learner: Learner) -> list[Trajectory]:
    """The first step's batch."""
    sampler, draw = Sampler(run, base), Draw(run, source(run.prompts))
    return [sampler.sample(part, learner.policy())[1] for part in draw(0).chunks(run.actors.batch)]


def noise(bench: Bench) -> None:
    """How far the learner's log-probs are from the sampler's for rounding alone, by precision and micro-batch."""
    for model in ("sd15",) if bench.dry else ("sd15", "menagerie"):
        for dtype in ("float32",) if bench.dry else (*DTYPES, "float32"):
            _noise(bench, model, dtype)


def _noise(bench: Bench, model: str, dtype: str) -> None:
    steps = 4 if bench.dry else 50
    words = [f"policy.dtype={dtype}", f"policy.steps={steps}", "learner.images_per_step=8", "learner.minibatch=8",
             "actors.batch=8", "policy.guidance=5"]
    run, base = bench.run(*words, model=model) if model == "sd15" else _menagerie(words)
    learner = Learner(run, base)
    perturb(learner.denoiser)
    learner._publish()
    batch = learner._batch(drawn(run, base, learner), np.linspace(-1, 1, 8))
    shown = sorted({0, steps // 4, steps // 2, steps - 4, steps - 3, steps - 2, steps - 1} & set(learner.window))
    plan = [np.array([(image, index) for index in shown for image in range(8)])]
    for micro in (1, 4, 8, 16):
        again_BT = recomputed(learner.denoiser, batch, plan, micro, learner.ranks)
        delta_BT = (again_BT - batch.log_probs_BT)[:, shown].double().abs()
        early, jump = delta_BT[:, [i for i, index in enumerate(shown) if index != steps - 2]], delta_BT[:, -2]
        label = f"{model}, {dtype}, micro-batch {micro}"
        bench.say(f"{label}: |d log p|, mean", float(early.mean()), "", "clip is 1e-4")
        bench.say(f"{label}: |d log p|, largest", float(early.max()))
        bench.say(f"{label}: beyond 1e-4", float((early > 1e-4).double().mean()), "", "below 0.01")
        bench.say(f"{label}: |d log p| at the last step but one", float(jump.mean()))


def _menagerie(words: list[str]) -> tuple[Run, BaseModel]:
    from ddpo.runfile import load
    from ddpo.source import ROOT

    words = [*words, "learner.window=[]", "learner.timestep_fraction=1.0"]
    return load(ROOT / "deploy" / "recipes" / "demo.toml", words), find("menagerie")


def repeats(bench: Bench) -> None:
    """Is the same work the same twice: a chunk's pixels, an update's weights, with deterministic kernels and without."""
    steps = 3 if bench.dry else 10
    run, base = bench.run(f"policy.steps={steps}", "learner.images_per_step=8", "learner.minibatch=8",
                          "learner.micro_batch=4", f"policy.dtype={'float32' if bench.dry else 'float16'}")
    learner, sampler = Learner(run, base), Sampler(run, base)
    perturb(learner.denoiser)
    learner._publish()
    part, policy = Draw(run, source(run.prompts))(0).chunks(8)[0], learner.policy()
    chunks = [sampler.sample(part, policy) for _ in range(2)]
    marks = {hashlib.sha256(images.pixels_BYX3.tobytes()).hexdigest() for images, _, _ in chunks}
    bench.say("pixels of a chunk drawn twice", "equal" if len(marks) == 1 else "differ", "", "equal")
    state, known, trajectories = learner.state(), list(learner.known), [chunks[0][1]]

    def update() -> str:
        learner.restore(0, state, known)
        learner.update(trajectories, np.linspace(-1, 1, 8), np.ones(8, bool))
        return learner.policy().digest

    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        label = "deterministic kernels" if deterministic else "torch's defaults"
        seconds = bench.seconds(update, 2)
        same = len({update() for _ in range(2)}) == 1
        bench.say(f"weights after the same update twice, {label}", "equal" if same else "differ")
        bench.say(f"seconds of the update, {label}", seconds, "s")
    torch.use_deterministic_algorithms(False)


def devices(bench: Bench) -> None:
    """menagerie in fp32 on the CPU and on the GPU from the same seeds: the same pictures but for rounding."""
    words = ["policy.dtype=float32", "learner.images_per_step=8", "learner.minibatch=8", "actors.batch=8"]
    run, base = _menagerie(words)
    images: dict[str, np.ndarray] = {}
    digests: set[str] = set()
    there = bench.device.type
    for name, device, tf32 in (("cpu", "cpu", False), ("gpu", there, False), ("gpu, TF32", there, True)):
        placed = replace(run, policy=replace(run.policy, device=device), gpu=replace(run.gpu, tf32=tf32))
        learner = Learner(placed, base)
        digests.add(learner.policy().digest)
        sampler = Sampler(placed, base)
        part = Draw(run, source(run.prompts))(0).chunks(8)[0]
        images[name] = sampler.sample(part, learner.policy())[0].pixels_BYX3
    bench.say("LoRA's start on CPU and GPU", "equal" if len(digests) == 1 else "differ", "", "equal")
    for name in ("gpu", "gpu, TF32"):
        apart = np.abs(images[name].astype(int) - images["cpu"])
        bench.say(f"{name}: pixels within one level of the CPU's", float((apart <= 1).mean()), "", "above 0.999")
