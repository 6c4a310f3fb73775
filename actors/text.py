"""Prompt embeddings: the frozen text encoders with a cache.

Consumes prompts, produces a `Condition`, fp32. Shape letters: B prompts, L tokens, D width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ddpo.base import SDXL, TEXT_PARTS, BaseModel
from ddpo.condition import Condition
from ddpo.config import PolicyConfig
from ddpo.denoiser import DTYPES
from ddpo.device import place
from ddpo.errors import BaseModelError, InputError
from ddpo.pretrained import whole


def load_tokenizers(base: BaseModel) -> list[Any]:
    """The tokenizers alone, which need no weights; raises BaseModelError."""
    from transformers import CLIPTokenizer

    try:
        return [CLIPTokenizer.from_pretrained(str(base.folder / part)) for part, _ in TEXT_PARTS[base.pipeline]]
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelError(f"policy.base: the tokenizer of {base.name} cannot be loaded: {error}") from error


def check_lengths(prompts: Iterable[str], base: BaseModel) -> None:
    """Raise InputError for the first prompt that a tokenizer would cut: its end would not be drawn."""
    tokenizers = load_tokenizers(base)
    for prompt in prompts:
        for tokenizer in tokenizers:
            _check_length(prompt, tokenizer)


def _check_length(prompt: str, tokenizer: Any) -> None:
    count, limit = len(tokenizer(prompt)["input_ids"]), tokenizer.model_max_length
    if count > limit:
        raise InputError(
            f"prompts: {prompt[:60]!r}... is {count} tokens long, this model reads {limit} (with start and end); "
            "the rest would be ignored in the image and yet scored. Shorten it."
        )


class TextEncoder:
    """c -> embedding. Prompts are encoded one at a time: a batch's size moves the last bits, and which prompts meet
    in a batch depends on the sampler, so batching would make the numbers depend on the number of samplers."""

    def __init__(self, base: BaseModel, config: PolicyConfig) -> None:
        self.base, self.device = base, place(config.device)
        self.tokenizers = load_tokenizers(base)
        parts = [encoder for _, encoder in TEXT_PARTS[base.pipeline]]
        self.encoders = [load_encoder(base, part, config.dtype).to(self.device) for part in parts]
        self._one = lru_cache(maxsize=1024)(self._encode)

    def __call__(self, prompts: tuple[str, ...]) -> Condition:
        """One row a prompt, in their order."""
        text, pooled = zip(*(self._one(prompt) for prompt in prompts), strict=True)
        return Condition(torch.stack(text), torch.stack(pooled)).to(self.device)

    def null(self) -> Condition:
        """The empty prompt that guidance leads away from, one row."""
        null = self(("",))
        return Condition(*(torch.zeros_like(part) for part in null)) if self.base.zero_null else null

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Tokens (L, D) and pooled text (P,), in the host's memory, where a thousand prompts are half a GB.

        SDXL takes both encoders' last layer but one, side by side, and the second one's projection (Podell et al. 2023,
        section 2.1); SD 1 and 2 take the last layer, and P is 0.
        """
        said = [self._read(prompt, *part) for part in zip(self.tokenizers, self.encoders, strict=True)]
        if self.base.pipeline != SDXL:
            tokens_LD = said[0].last_hidden_state[0].float().cpu()
            return tokens_LD, tokens_LD.new_zeros(0)
        tokens_LD = torch.cat([part.hidden_states[-2][0] for part in said], dim=-1)
        return tokens_LD.float().cpu(), said[1].text_embeds[0].float().cpu()

    def _read(self, prompt: str, tokenizer: Any, encoder: Any) -> Any:
        limit = tokenizer.model_max_length
        tokens = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return encoder(tokens["input_ids"].to(self.device), output_hidden_states=self.base.pipeline == SDXL)


def load_encoder(base: BaseModel, part: str, dtype: str) -> Any:
    """The text encoder of a folder of the base model; raises BaseModelError."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    try:
        encoder = whole(kind, str(base.folder / part), dtype=DTYPES[dtype])
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"policy.base: the text encoder of {base.name} cannot be loaded: {error}") from error
    return encoder.requires_grad_(False).eval()
