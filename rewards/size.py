"""How much memory the models of rewards take, by the files on this machine's disk, else by what is known of published
ones.

Consumes the settings of a reward, produces bytes; waits for nothing. No torch for safetensors files.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from ddpo.config import RewardConfig
from ddpo.errors import InputError
from ddpo.stages import WHOLE
from rewards.locate import CLIP_H, CLIP_L, IMAGEREWARD_FILE, LLAVA, OPEN_CLIP_FILES, chosen, locate

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "4bit": 0.5}
MODELS_OF = {"describe": ("model",), "compare": ("compare",), WHOLE: ("model", "compare")}  # that a stage loads
FULL = {"aesthetic"}  # kinds whose model is fp32 whatever the device, as BERTScore's is
LAYOUTS = (  # files of a model: those of the first pattern that is there; model.fp16.safetensors, say, is a copy
    "model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin",
    *OPEN_CLIP_FILES, IMAGEREWARD_FILE,
)
PUBLISHED = {  # numbers in the weights that are loaded, counted on networks of the published configurations
    LLAVA: 13_351_494_656,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
    "microsoft/deberta-xlarge-mnli": 757_804_032,
    CLIP_L: 427_616_513,
    CLIP_H: 986_109_441,
    "yuvalkirstain/PickScore_v1": 986_109_441,
    "xswu/HPSv2": 986_109_441,
    "zai-org/ImageReward": 446_206_689,
    "minilm": 22_713_216,
}


class Weights(NamedTuple):
    """Bytes of what a worker loads; published: a model of it is not on this machine and its size is the published."""

    bytes: int
    published: bool


def weights(reward: RewardConfig, verb: str, gpu: bool) -> Weights | None:
    """Of what a worker of this stage loads; 0 for a reward without models, None where one is not known."""
    total, published = 0.0, False
    for option in MODELS_OF[verb]:
        if name := chosen(reward, option):
            here = parameters(name)
            count = here or PUBLISHED.get(name)
            if count is None:
                return None
            total, published = total + count * _width(reward, option, gpu), published or not here
    return Weights(round(total), published)


def _width(reward: RewardConfig, option: str, gpu: bool) -> float:
    if option == "compare" or reward.kind in FULL:
        return BYTES["float32"]
    return BYTES[("float16" if gpu else "float32") if reward.dtype == "auto" else reward.dtype]


def parameters(name: str) -> int | None:
    """Numbers in the weights of a model by name, file, folder or hub name; None where it is not here."""
    place = _place(name)
    if place is None or place.is_file():
        return place and _numbers(place)
    return next((sum(map(_numbers, files)) for pattern in LAYOUTS if (files := list(place.glob(pattern)))), None)


def _place(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        place = locate(name)
        return Path(place) if Path(place).exists() else Path(snapshot_download(place, local_files_only=True))
    except (InputError, OSError, ValueError):
        return None


def _numbers(file: Path) -> int:
    """From the head of a safetensors file: its length in eight bytes, then JSON with every tensor's shape; of a pickled
    one from its tensors, which torch's restricted loader makes without their data."""
    if file.suffix != ".safetensors":
        from rewards.models import tensors

        return sum(tensor.numel() for tensor in tensors(file, "meta").values() if tensor.is_floating_point())
    with file.open("rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
