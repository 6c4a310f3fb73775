"""Is what the GPU computes right: names, gradients by precision, noise by batch shape, repeatability, CPU against GPU.

Consumes the random model and menagerie, produces results; waits for nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.prompts import Draw, source
from actors.sampler import Sampler
from bench.gpu.measure import Bench
from bench.gpu.models import perturb
from ddpo.backends import set_backends
from ddpo.base import BaseModel, find
from ddpo.condition import Condition
from ddpo.config import Run
from ddpo.denoiser import Denoiser
from ddpo.objective import ddpo_is
from ddpo.types import Trajectory
from learner.learner import Learner
from learner.proximal import recomputed
from learner.scaling import LossScale

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


def given(base: BaseModel, denoiser: Denoiser, steps: list[int]) -> tuple[Tensor, Tensor, Condition, Condition]:
    """Random rows, the same for every precision: x_t, step indices, prompts and empty prompts."""
    generator, rows = torch.Generator().manual_seed(2), len(steps)
    width = denoiser.unet.config.cross_attention_dim

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(denoiser.device)

    c, null = (Condition(random(rows, 77, width), random(rows, 0)) for _ in range(2))
    return random(rows, *base.latent_CHW), torch.tensor(steps, device=denoiser.device), c, null


def gradient(bench: Bench) -> None:
    """DDPO's gradient in half precision against fp32, at the paper's minibatch and at TRL's, without the loss's scale
    and with the one that the learner takes."""
    run, base = bench.run("policy.dtype=float32")
    steps, target = [1, 15, 30, 45], None
    exact: dict[int, Tensor] = {}
    for dtype in ("float32", *(DTYPES[1:] if bench.dry else DTYPES)):  # a CPU takes minutes for float16
        denoiser = Denoiser(base, replace(run.policy, dtype=dtype, device=bench.device.type), run.seed)
        set_backends(run.gpu)
        perturb(denoiser)
        rows = given(base, denoiser, steps)
        if target is None:
            noise = torch.randn(rows[0].shape, generator=torch.Generator().manual_seed(3)).to(denoiser.device)
            with torch.no_grad():
                target = denoiser.step(*rows).sample(noise)
        for pairs in (3200, 150, 50):
            scales = {1.0, LossScale(dtype).of(target[0].numel(), pairs)}
            for scale in sorted(scales):
                found = _gradient(denoiser, rows, target, pairs, scale)
                exact.setdefault(pairs, found)
                cosine = float(found @ exact[pairs] / (found.norm() * exact[pairs].norm()).clamp(min=1e-300))
                label, wanted = f"{dtype}, loss / {pairs} x 2^{int(np.log2(scale))}", scale > 1 or dtype == "bfloat16"
                bench.say(f"{label}: cosine with fp32", cosine, "", "above 0.99" if wanted else "")
                bench.say(f"{label}: |g| / |g fp32|", float(found.norm() / exact[pairs].norm()))
                bench.say(f"{label}: elements that are 0", float((found == 0).double().mean()))
        del denoiser


def _gradient(denoiser: Denoiser, rows: tuple[Any, ...], target: Tensor, pairs: int, scale: float) -> Tensor:
    """What the optimizer would be given, in one fp64 vector."""
    log_prob_P = denoiser.step(*rows).log_prob(target)
    advantage_P = torch.tensor([1.0, -1.0, 0.5, -2.0], device=denoiser.device)
    loss_P = ddpo_is(log_prob_P, log_prob_P.detach(), advantage_P, 1e-4)
    (loss_P.sum() / pairs * scale).backward()
    denoiser.learning.take_gradients()
    denoiser.learning.give_gradients(scale)
    grads = [weight.grad for weight in denoiser.trainable.values() if weight.grad is not None]
    found = torch.cat([grad.flatten() for grad in grads]).double()
    for weight in denoiser.trainable.values():
        weight.grad = None
    return found


def drawn(run: Run, base: BaseModel, learner: Learner) -> list[Trajectory]:
    """The first step's batch."""
    sampler, draw = Sampler(run, base), Draw(run, source(run.prompts))
    return [sampler.sample(part, learner.policy())[1] for part in draw(0).chunks(run.actors.batch)]


def noise(bench: Bench) -> None:
    """How far the learner's log-probs are from the sampler's for rounding alone, by precision and micro-batch."""
    for model in ("sd15",) if bench.dry else ("sd15", "menagerie"):
        for dtype in ("float32",) if bench.dry else DTYPES:
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
    for micro in (8, 4, 16):
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
    """Is the same work the same twice: a chunk's pixels; an update's weights, with repeatable kernels and without."""
    steps, count = (2, 2) if bench.dry else (4, 8)
    run, base = bench.run(f"policy.steps={steps}", f"learner.images_per_step={count}", f"learner.minibatch={count}",
                          f"actors.batch={count}", f"learner.micro_batch={count}",
                          f"policy.dtype={'float32' if bench.dry else 'float16'}")
    learner, sampler = Learner(run, base), Sampler(run, base)
    perturb(learner.denoiser)
    learner._publish()
    part, policy = Draw(run, source(run.prompts))(0).chunks(count)[0], learner.policy()
    chunks = [sampler.sample(part, policy) for _ in range(2)]
    marks = {hashlib.sha256(images.pixels_BYX3.tobytes()).hexdigest() for images, _, _ in chunks}
    bench.say("pixels of a chunk drawn twice", "equal" if len(marks) == 1 else "differ", "", "equal")
    state, known, trajectories = learner.state(), list(learner.known), [chunks[0][1]]

    def update() -> str:
        learner.restore(0, state, known)
        learner.update(trajectories, np.linspace(-1, 1, count), np.ones(count, bool))
        return learner.policy().digest

    for deterministic in (False, True):
        set_backends(replace(run.gpu, deterministic=deterministic))
        label = "deterministic kernels" if deterministic else "torch's defaults"
        seconds = bench.seconds(update, 2)
        same = len({update() for _ in range(2)}) == 1
        bench.say(f"weights after the same update twice, {label}", "equal" if same else "differ")
        bench.say(f"seconds of the update, {label}", seconds, "s")


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


def options(bench: Bench) -> None:
    """An update under every option of the learner, and a learner that goes on from a state as the one that left it."""
    steps, half = (2, "float32") if bench.dry else (4, "float16")
    small = [f"policy.steps={steps}", "learner.images_per_step=2", "learner.minibatch=2", "actors.batch=2",
             "learner.micro_batch=2"]
    cases = {
        "plain": [], "EMA": ["learner.ema=0.9"], "KL": ["learner.kl=0.1"], "truncate": ["learner.correction=truncate"],
        "decoupled": ["learner.correction=decoupled"], "recompute": ["learner.old_log_probs=recompute"],
        "RWR": ["learner.algorithm=rwr"], "checkpointing": ["learner.gradient_checkpointing=true"],
        "full": ["policy.train=full"], "full, bfloat16": ["policy.train=full", "policy.dtype=bfloat16"],
    }
    for name, words in list(cases.items())[: 8 if bench.dry else None]:
        run, base = bench.run(f"policy.dtype={half}", *small, *words)
        learner = Learner(run, base)
        trajectories, factors = drawn(run, base, learner), np.array([0.5, 1.0])
        report = learner.update(trajectories, factors, np.ones(2, bool))
        bench.say(f"{name}: gradient's norm", report.grad_norm, "", "finite and above 0")
        if name == "plain":
            state, known = learner.state(), [*learner.known, (1, trajectories[0].digest)]
            resumed = Learner(run, base)
            resumed.restore(1, state, known)
            for one in (learner, resumed):
                one.known.append((1, trajectories[0].digest))
                one.update([replace(t, version=1) for t in trajectories], factors, np.ones(2, bool))
            same = learner.policy().digest == resumed.policy().digest
            bench.say("going on from a state", "equal" if same else "differs", "", "equal")


def rewards(bench: Bench) -> None:
    """menagerie's small LLaVA and CLIP on the GPU in half precision against the CPU in fp32."""
    from rewards.clip import Clip
    from rewards.describe import Describer
    from rewards.locate import SHIPPED

    words = ["policy.dtype=float32", f"learner.images_per_step={2 if bench.dry else 16}", "learner.minibatch=2",
             f"actors.batch={2 if bench.dry else 16}"]
    run, base = _menagerie(words)
    part = Draw(run, source(run.prompts))(0).chunks(run.actors.batch)[0]
    pixels = Sampler(run, base).sample(part, Learner(run, base).policy())[0].pixels_BYX3
    told, seen = {}, {}
    for device, dtype in (("cpu", "float32"), (bench.device.type, "float32" if bench.dry else "float16")):
        describer = Describer(str(SHIPPED["menagerie"]), 12, dtype, device)
        told[device] = describer.ask(pixels, ["what is going on in this image?"] * len(pixels))
        seen[device] = Clip(str(SHIPPED["menagerie-clip"]), dtype, device).images(list(pixels)).cpu().float()
    same = float(np.mean([a == b for a, b in zip(told["cpu"], told[bench.device.type], strict=True)]))
    bench.say("captions that are the CPU's", same, "", "at least 0.95")
    apart = float((seen["cpu"] - seen[bench.device.type]).abs().max())
    bench.say("CLIP's unit embeddings, largest difference from the CPU's", apart, "", "below 1e-2")


def nccl(bench: Bench) -> None:
    """NCCL answers, with a single rank: two on one GPU it refuses."""
    import torch.distributed as dist

    from learner.ranks import meeting_point

    point = meeting_point("127.0.0.1")
    backend = "gloo" if bench.dry else "nccl"
    dist.init_process_group(backend, store=dist.TCPStore("127.0.0.1", point.port), rank=0, world_size=1)
    ones = torch.ones(1000, device=bench.device)
    dist.all_reduce(ones)
    bench.say(f"sum by {backend}", float(ones.sum()), "", "1000")
    dist.destroy_process_group()
