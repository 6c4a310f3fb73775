"""Describe: a vision-language model says what is in an image (Black et al. 2023, section 5.1, "LLaVA").

Consumes uint8 images and a question for each, produces one answer each, greedy; waits for nothing but the model's load.
Any checkpoint that `LlavaForConditionalGeneration` loads, by folder or hub name.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpo.device import place
from ddpo.errors import RewardError
from ddpo.pretrained import whole
from rewards.locate import locate
from rewards.models import dtype_of, loading, processor

AGAIN = " Your answer must be short, but not empty."
PLAIN = "USER: <image>\n{question} ASSISTANT:"  # LLaVA 1.5's own form, for checkpoints without a chat template


class Describer:
    """LLaVA behind one verb, `ask`. dtype: "auto" (float16 on a GPU, float32 on a CPU), a torch dtype or "4bit"."""

    def __init__(self, model: str, max_tokens: int, dtype: str, device: str) -> None:
        from transformers import LlavaForConditionalGeneration

        self.device, self.max_tokens = place(device), max_tokens
        folder = locate(model)
        with loading(model, "a LLaVA checkpoint (llava-hf layout: model and processor)"):
            self.processor = processor(folder)
            self.model: Any = whole(LlavaForConditionalGeneration, folder, **_precision(dtype, self.device))
            _count_tokens(self.processor, self.model.config)
        if dtype != "4bit":
            self.model.to(self.device)
        self.model.eval().requires_grad_(False)
        self.processor.tokenizer.padding_side = "left"  # so that all rows' answers start at one place

    def ask(self, images_BYX3: NDArray[np.uint8], questions: Sequence[str]) -> list[str]:
        """One answer per image, at most max_tokens tokens; an empty one is asked for once more, then stays empty."""
        answers = self._generate(images_BYX3, questions)
        empty = [row for row, answer in enumerate(answers) if not answer]
        if empty:
            again = self._generate(images_BYX3[empty], [questions[row] + AGAIN for row in empty])
            for row, answer in zip(empty, again, strict=True):
                answers[row] = answer
        return answers

    @torch.no_grad()
    def _generate(self, images_BYX3: NDArray[np.uint8], questions: Sequence[str]) -> list[str]:
        inputs = self.processor(
            images=[Image.fromarray(image) for image in images_BYX3], text=[self._prompt(text) for text in questions],
            padding=True, return_tensors="pt",
        ).to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        ids_BL = self.model.generate(
            **inputs, do_sample=False, temperature=None, top_p=None, max_new_tokens=self.max_tokens,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        fresh = ids_BL[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(fresh, skip_special_tokens=True)]

    def _prompt(self, question: str) -> str:
        if not self.processor.chat_template:
            return PLAIN.format(question=question)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return self.processor.apply_chat_template([turn], add_generation_prompt=True)


def _count_tokens(processor: Any, config: Any) -> None:
    """Tell a processor how many tokens a picture is: those published before 2025 left that to the model's code."""
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.num_additional_image_tokens = int("clip" in config.vision_config.model_type)  # its class token
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy


def _precision(dtype: str, device: torch.device) -> dict[str, Any]:
    if dtype != "4bit":
        return {"dtype": dtype_of(dtype, device)}
    if device.type != "cuda":
        raise RewardError('dtype = "4bit" needs a CUDA GPU, and torch sees none here. Write "auto" or "bfloat16".')
    if find_spec("bitsandbytes") is None:
        raise RewardError('dtype = "4bit" needs bitsandbytes: pip install bitsandbytes, or write "float16".')
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
    return {"quantization_config": config, "device_map": {"": device}}
