"""Which weights learn, and in which precision the network computes with them.

Consumes a UNet, gives it LoRA matrices or sets all of it learning; produces fp32 master weights by name. Where the base
is in half precision, the network computes with half copies of LoRA's matrices: casting its input to fp32 instead, as
peft does, doubles the kernels and the memory traffic of a forward pass, and the result is rounded to half all the same.
Waits for nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpo.config import PolicyConfig
from ddpo.errors import InputError


class Trainable:
    """The weights that learn.

    masters: name in the UNet -> fp32 parameter, what is optimised, published and saved
    copies:  the same in the network's precision, in which it computes; empty where it computes with the masters

    Raises InputError where LoRA's targets match nothing.
    """

    def __init__(self, unet: Any, config: PolicyConfig, seed: int) -> None:
        if config.train == "full":
            unet.requires_grad_(True)
        else:
            _add_lora(unet, config, seed)
        learning = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
        self.masters: dict[str, torch.nn.Parameter] = learning
        self.copies: dict[str, torch.nn.Parameter] = {}
        self.sum: Tensor | None = None  # of the copies' gradients since the last update, all in one fp32 row
        dtype = unet.dtype  # asked once: diffusers looks through all modules for it
        if config.train == "lora" and dtype != torch.float32:
            self.masters = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in learning.items()}
            self.copies = learning
            for weight in learning.values():
                weight.data = weight.data.to(dtype)
            _compute_lora_at_once(unet)

    @torch.no_grad()
    def refresh(self) -> None:
        """Have the network compute with the masters as they are now."""
        if self.copies:
            torch._foreach_copy_(list(self.copies.values()), list(self.masters.values()))

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the gradients of one backward pass to the sum, in fp32: thousands of small ones would be lost in half."""
        if not self.copies:
            return
        grads = [torch.zeros_like(copy) if copy.grad is None else copy.grad for copy in self.copies.values()]
        row = torch.cat([grad.flatten() for grad in grads])
        self.sum = row.float() if self.sum is None else self.sum.add_(row)
        for copy in self.copies.values():
            copy.grad = None

    @torch.no_grad()
    def give_gradients(self, scale: float) -> None:
        """Put the sum, divided by the loss's scale, into the masters' `grad`."""
        if self.sum is not None:
            parts = self.sum.split([master.numel() for master in self.masters.values()])
            for master, part in zip(self.masters.values(), parts, strict=True):
                master.grad = part.view_as(master)
            self.sum = None
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        if scale != 1.0 and grads:
            torch._foreach_div_(grads, scale)  # a power of two: exact


def _add_lora(unet: Any, config: PolicyConfig, seed: int) -> None:
    """fp32 matrices beside the frozen weights: A drawn at random from the seed, on the CPU, and B = 0."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=config.lora_targets,
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            unet.add_adapter(lora)
        except ValueError as error:
            raise InputError(f"policy.lora_targets = {config.lora_targets} cannot get LoRA here: {error}") from None
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _compute_lora_at_once(unet: Any) -> None:
    """W x + s B (A x) in three kernels a layer: peft's own forward makes a product, a scaled copy and a sum of full
    size after B, where a matrix product can add to what is there."""
    from peft.tuners.lora.layer import Linear

    for layer in unet.modules():
        if isinstance(layer, Linear):
            layer.forward = _forward_of(layer)  # type: ignore[method-assign]


def _forward_of(layer: Any) -> Callable[..., Tensor]:
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        base = layer.base_layer(x)
        if layer.disable_adapters:
            return base
        inner = torch.nn.functional.linear(x, a).flatten(0, -2)
        return torch.addmm(base.flatten(0, -2), inner, b.t(), alpha=scale).view_as(base)

    return forward
