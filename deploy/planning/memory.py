"""GPU memory and FLOP of samplers and learner, counted without a GPU and without weights.

Consumes a `Run` and its base model's JSON files, produces bytes and `Work`; waits for nothing. The networks and the
policy's own step go through one pass on torch's meta device, whose tensors have a shape and no data; what is alive at a
time is added up as an allocator would, what is computed by torch's own formulas. Not in the memory: CUDA itself,
workspaces of its libraries, what the allocator wastes. Not in the FLOP: what is no convolution, no product of matrices
and no attention, and the text encoders (a thousandth).

Shape letters: B rows, C H W latent, L text tokens, D text width, P width of the pooled text.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from ddpo.base import SDXL, TEXT_PARTS, BaseModel
from ddpo.condition import Condition
from ddpo.config import Run
from ddpo.denoiser import DTYPES, Denoiser
from deploy.planning.compute import Work

META = torch.device("meta")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. weights: frozen ones and the policy's; learning: gradients, Adam's moments, the average;
    activations: all else that is alive at the peak."""

    weights: int
    learning: int
    activations: int

    @property
    def total(self) -> int:
        """At the peak."""
        return self.weights + self.learning + self.activations


@dataclass(frozen=True)
class Counted:
    """parameters: of the UNet, LoRA's among them; policy: bytes of the weights that the learner publishes."""

    parameters: int
    policy: int
    sampler: Memory
    learner: Memory
    work: Work


def count(run: Run, base: BaseModel) -> Counted:
    """Everything, on one UNet without data."""
    denoiser = skeleton(run, base)
    parameters = sum(weight.numel() for weight in denoiser.unet.parameters())
    draws, step, decode = sampler(run, base, denoiser)
    learns, pair = learner(run, base, denoiser)
    return Counted(parameters, policy_bytes(denoiser), draws, learns, Work(step, decode, pair))


def policy_bytes(denoiser: Denoiser) -> int:
    """Of the weights that the learner publishes, in fp32."""
    return 4 * sum(weight.numel() for weight in denoiser.trainable.values())


class Alive(TorchDispatchMode):
    """Adds up the storages of all tensors that operations make for as long as each of them lives, and their FLOP."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flop = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and count what it gives and takes, as torch's FlopCounterMode does: that one follows modules
        by hooks besides, which hold tensors and so would change the memory."""
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        self.count(leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor))
        return result

    def count(self, tensors: Iterable[Tensor]) -> int:
        """Count these, each storage once; what is alive now."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._drop(key, size))
                self.now += size
        self.peak = max(self.peak, self.now)
        return self.now

    def _drop(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


class _FusedAttention(torch.autograd.Function):
    """What CUDA's flash and memory-efficient kernels keep for the backward pass: no matrix of all pairs of tokens,
    which the meta device's own attention would make."""

    @staticmethod
    def forward(ctx: Any, alive: Alive, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
        result = torch.empty_like(q_BHLD)
        ctx.save_for_backward(q_BHLD, k_BHLD, v_BHLD, result, q_BHLD.new_empty(q_BHLD.shape[:-1], dtype=torch.float32))
        ctx.alive, ctx.flop = alive, 4 * q_BHLD.numel() * k_BHLD.shape[-2]  # q k^T, and its product with v
        alive.flop += ctx.flop
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.alive.flop += 2 * ctx.flop  # four products; what flash computes again is not counted
        return None, *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def fused(alive: Alive) -> Iterator[None]:
    """Attention as CUDA computes it, for the block. Not as a TorchFunctionMode: those are off while autograd runs, and
    with gradient checkpointing the forward pass is run again there."""
    def attention(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, *_: Any, **__: Any) -> Any:
        return _FusedAttention.apply(alive, q_BHLD, k_BHLD, v_BHLD)

    functional: Any = torch.nn.functional
    there, functional.scaled_dot_product_attention = functional.scaled_dot_product_attention, attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = there


@torch.no_grad()
def sampler(run: Run, base: BaseModel, denoiser: Denoiser) -> tuple[Memory, float, float]:
    """One sampler, at the larger of its two peaks: a step of the chain, or the decoder; an image's FLOP of both."""
    vae, alive = _autoencoder(run, base), Alive()
    weights = _weights(alive, [denoiser.unet, vae, *_text_encoders(run, base)], denoiser)
    given = rows(base, denoiser, run.actors.batch)
    states = given[0].nbytes * 2 * (run.policy.steps + 1)  # and as much noise, drawn beforehand
    with fused(alive), alive:
        denoiser.step(*given)
        step = alive.flop
        vae.decode(given[0].to(vae.dtype), return_dict=False)[0].float()
    images = run.actors.batch
    return Memory(weights, 0, alive.peak - weights + states), step / images, (alive.flop - step) / images


def learner(run: Run, base: BaseModel, denoiser: Denoiser) -> tuple[Memory, float]:
    """One rank in a minibatch's second micro-batch, when the first one's gradients are there; a pair's FLOP."""
    alive, options = Alive(), run.learner
    weights = _weights(alive, [denoiser.unet], denoiser)
    grads = {weight: torch.empty_like(weight) for weight in denoiser.trainable.values()}
    gradients = alive.count(grads.values()) - weights
    for weight, grad in grads.items():
        weight.grad = grad
    if options.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
        denoiser.unet.train()
    with fused(alive), alive:
        _loss(run, base, denoiser).backward()
    memory = Memory(weights, gradients * (4 if options.ema else 3), alive.peak - weights - gradients)
    return memory, alive.flop / options.micro_batch


def _weights(alive: Alive, networks: list[Any], denoiser: Denoiser) -> int:
    """Of the networks, and the fp32 masters of what the policy's network holds in half precision."""
    alive.count(denoiser.trainable.values())
    return alive.count(tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))


def _loss(run: Run, base: BaseModel, denoiser: Denoiser) -> Tensor:
    """Of a micro-batch: what learner.losses computes with the network; its sums over pairs are of no size."""
    given = rows(base, denoiser, run.learner.micro_batch)
    x_BCHW = torch.empty_like(given[0])
    if run.learner.algorithm.startswith("rwr"):
        return denoiser.denoising_loss(given[0], given[1], x_BCHW, *given[2:]).sum()
    gaussian = denoiser.step(*given)
    loss = gaussian.log_prob(x_BCHW).sum()
    return loss + gaussian.kl(denoiser.base_step(*given)).sum() if run.learner.kl else loss


def skeleton(run: Run, base: BaseModel) -> Denoiser:
    """The policy without data. Fully trained weights are fp32 and cast for each operation (autocast), which the meta
    device cannot do: then activations count as fp32, which is too much."""
    from diffusers import UNet2DConditionModel

    config = replace(run.policy, device="meta")
    if config.train == "full":
        config = replace(config, dtype="float32")
    unet = _of_config(UNet2DConditionModel, base, "unet", DTYPES[config.dtype])
    return Denoiser(base, config, run.seed, unet)


def _of_config(kind: Any, base: BaseModel, part: str, dtype: torch.dtype) -> Any:
    with META:
        return kind.from_config(kind.load_config(str(base.folder), subfolder=part)).to(dtype).eval()


def _autoencoder(run: Run, base: BaseModel) -> Any:
    from diffusers import AutoencoderKL

    vae = _of_config(AutoencoderKL, base, "vae", DTYPES[base.vae_dtype(run.policy.dtype)])
    vae.enable_slicing()
    return vae


def _text_encoders(run: Run, base: BaseModel) -> list[Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with META:
        return [kinds[part](CLIPTextConfig.from_pretrained(str(base.folder / part))).to(DTYPES[run.policy.dtype])
                for _, part in TEXT_PARTS[base.pipeline]]


def rows(base: BaseModel, denoiser: Denoiser, count: int) -> tuple[Tensor, Tensor, Condition, Condition]:
    """What a step is asked: x_t, step index, prompts and empty prompts."""
    read = [json.loads((base.folder / part / "config.json").read_text()) for _, part in TEXT_PARTS[base.pipeline]]
    tokens, width = read[0].get("max_position_embeddings", 77), denoiser.unet.config.cross_attention_dim
    pooled = read[1].get("projection_dim", 512) if base.pipeline == SDXL else 0
    with META:
        c = Condition(torch.empty(count, tokens, width), torch.empty(count, pooled))
        return torch.empty(count, *base.latent_CHW), torch.zeros(count, dtype=torch.int64), c, c
