"""Prompt embeddings: the frozen text encoder with a cache.

Consumes prompts, produces embeddings of shape (B, L, D), fp32.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ddpo.base import BaseModel
from ddpo.config import PolicyConfig
from ddpo.denoiser import DTYPES, device
from ddpo.errors import BaseModelError, InputError


def load_tokenizer(base: BaseModel) -> Any:
    """The tokenizer alone, which needs no weights; raises BaseModelError."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(str(base.folder / "tokenizer"))
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelError(f"policy.base: the tokenizer of {base.name} cannot be loaded: {error}") from error


def check_lengths(prompts: Iterable[str], tokenizer: Any) -> None:
    """Raise InputError for the first prompt that the tokenizer would cut: its end would not be drawn."""
    limit = tokenizer.model_max_length
    for prompt in prompts:
        count = len(tokenizer(prompt)["input_ids"])
        if count > limit:
            raise InputError(
                f"prompts: {prompt[:60]!r}... is {count} tokens long, this model reads {limit} (with start and end); "
                "the rest would be ignored in the image and yet scored. Shorten it."
            )


class TextEncoder:
    """c -> embedding. Prompts are encoded one at a time: a batch's size moves the last bits, and which prompts meet
    in a batch depends on the sampler, so batching would make the numbers depend on the number of samplers."""

    def __init__(self, base: BaseModel, config: PolicyConfig) -> None:
        from transformers import CLIPTextModel

        self.tokenizer = load_tokenizer(base)
        self.device = device(config.device)
        try:
            encoder: Any = CLIPTextModel.from_pretrained(
                str(base.folder / "text_encoder"), dtype=DTYPES[config.dtype], use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise BaseModelError(f"policy.base: the text encoder of {base.name} cannot be loaded: {error}") from error
        self.encoder = encoder.requires_grad_(False).eval().to(self.device)
        self._one = lru_cache(maxsize=1024)(self._encode)

    def __call__(self, prompts: tuple[str, ...]) -> Tensor:
        """Embeddings (B, L, D) in the order of the prompts."""
        return torch.stack([self._one(prompt) for prompt in prompts])

    def _encode(self, prompt: str) -> Tensor:
        limit = self.tokenizer.model_max_length
        tokens = self.tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return self.encoder(tokens["input_ids"].to(self.device))[0][0].float()
