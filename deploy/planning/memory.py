"""GPU memory of samplers and learner, counted without a GPU and without weights.

Consumes a `Run` and its base model's JSON files, produces bytes; waits for nothing. The networks and the policy's own
step go through one pass on torch's meta device, whose tensors have a shape and no data, and what is alive at a time is
added up as an allocator would. Not in it: CUDA itself, workspaces of its libraries, what the allocator wastes.

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

from ddpo.base import SDXL, TEXT_PARTS, BaseModel
from ddpo.condition import Condition
from ddpo.config import Run
from ddpo.denoiser import DTYPES, Denoiser

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


def count(run: Run, base: BaseModel) -> Counted:
    """Everything, on one UNet without data."""
    denoiser = skeleton(run, base)
    parameters = sum(weight.numel() for weight in denoiser.unet.parameters())
    return Counted(parameters, policy_bytes(denoiser), sampler(run, base, denoiser), learner(run, base, denoiser))


def policy_bytes(denoiser: Denoiser) -> int:
    """Of the weights that the learner publishes, in fp32."""
    return 4 * sum(weight.numel() for weight in denoiser.trainable.values())


class Alive(TorchDispatchMode):
    """Adds up the storages of all tensors that operations make for as long as each of them lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and count what it gives."""
        result = func(*args, **(kwargs or {}))
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
    def forward(ctx: Any, q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
        result = torch.empty_like(q_BHLD)
        ctx.save_for_backward(q_BHLD, k_BHLD, v_BHLD, result, q_BHLD.new_empty(q_BHLD.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def fused() -> Iterator[None]:
    """Attention as CUDA computes it, for the block. Not as a TorchFunctionMode: those are off while autograd runs, and
    with gradient checkpointing the forward pass is run again there."""
    def attention(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, *_: Any, **__: Any) -> Any:
        return _FusedAttention.apply(q_BHLD, k_BHLD, v_BHLD)

    functional: Any = torch.nn.functional
    there, functional.scaled_dot_product_attention = functional.scaled_dot_product_attention, attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = there


@torch.no_grad()
def sampler(run: Run, base: BaseModel, denoiser: Denoiser) -> Memory:
    """One sampler, at the larger of its two peaks: a step of the chain, or the decoder."""
    vae, alive = _autoencoder(run, base), Alive()
    weights = _weights(alive, [denoiser.unet, vae, *_text_encoders(run, base)])
    given = rows(base, denoiser, run.actors.batch)
    states = given[0].nbytes * 2 * (run.policy.steps + 1)  # and as much noise, drawn beforehand
    with fused(), alive:
        denoiser.step(*given)
        vae.decode(given[0].to(vae.dtype), return_dict=False)[0].float()
    return Memory(weights, 0, alive.peak - weights + states)


def learner(run: Run, base: BaseModel, denoiser: Denoiser) -> Memory:
    """One rank in a minibatch's second micro-batch, when the first one's gradients are there."""
    alive, options = Alive(), run.learner
    weights = _weights(alive, [denoiser.unet])
    grads = {weight: torch.empty_like(weight) for weight in denoiser.trainable.values()}
    gradients = alive.count(grads.values()) - weights
    for weight, grad in grads.items():
        weight.grad = grad
    if options.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
        denoiser.unet.train()
    with fused(), alive:
        _loss(run, base, denoiser).backward()
    return Memory(weights, gradients * (4 if options.ema else 3), alive.peak - weights - gradients)


def _weights(alive: Alive, networks: list[Any]) -> int:
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
    if base.pipeline == SDXL:
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
