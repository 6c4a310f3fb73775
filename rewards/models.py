"""What the rewards that are models share: precision, reading files, what to say when a model does not load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpo.denoiser import DTYPES
from ddpo.errors import RewardError


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a config's word; "auto" is float16 on a GPU and float32 on a CPU."""
    return DTYPES["float32" if device.type == "cpu" else "float16"] if name == "auto" else DTYPES[name]


def processor(name: str) -> Any:
    """What makes tokens and pixels for a model. Pixels are always made by Pillow: transformers takes torchvision where
    that is installed, which scales a little differently, and scores would depend on what else a machine has."""
    from transformers import AutoImageProcessor, AutoProcessor

    loaded: Any = AutoProcessor.from_pretrained(name)
    loaded.image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    return loaded


def tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt, .pth or .bin read by torch's restricted loader, never as code;
    on the device "meta" without their data."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path, device)
    try:
        loaded = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # many kinds, among them one that may not be imported here
        raise ValueError(f"{path.name} holds something else than tensors ({type(error).__name__})") from error
    return loaded.get("state_dict", loaded)


@contextmanager
def loading(model: str, what: str) -> Iterator[None]:
    """Say which model did not load, and what was expected there."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise RewardError(
            f"{model!r} did not load as {what}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}. "
            "Give a folder or a hub name of such a model; without a network, only a folder."
        ) from error
