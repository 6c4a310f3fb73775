"""How much memory the models of rewards take, read from the heads of their safetensors files. No torch.

Consumes the settings of a reward, produces bytes; waits for nothing: what is not on this machine's disk is unknown.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from ddpo.config import RewardConfig
from ddpo.errors import InputError
from ddpo.stages import WHOLE
from rewards.locate import chosen, locate

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "4bit": 0.5}
MODELS_OF = {"describe": ("model",), "compare": ("compare",), WHOLE: ("model", "compare")}  # that a stage loads
FULL = {"aesthetic"}  # kinds whose model is fp32 whatever the device, as BERTScore's is


def weights(reward: RewardConfig, verb: str, gpu: bool) -> int | None:
    """Bytes of what a worker of this stage loads; 0 for a reward without models, None where one is not on disk."""
    total = 0.0
    for option in MODELS_OF[verb]:
        if name := chosen(reward, option):
            count = parameters(name)
            if count is None:
                return None
            total += count * _width(reward, option, gpu)
    return round(total)


def _width(reward: RewardConfig, option: str, gpu: bool) -> float:
    if option == "compare" or reward.kind in FULL:
        return BYTES["float32"]
    return BYTES[("float16" if gpu else "float32") if reward.dtype == "auto" else reward.dtype]


def parameters(name: str) -> int | None:
    """Numbers in the weights of a model by name, folder or hub name; None where it is not here."""
    folder = _folder(name)
    files = sorted(folder.glob("model*.safetensors")) if folder else []
    return sum(_numbers(file) for file in files) or None


def _folder(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        place = locate(name)
        return Path(place) if Path(place).exists() else Path(snapshot_download(place, local_files_only=True))
    except (InputError, OSError, ValueError):
        return None


def _numbers(file: Path) -> int:
    """From the head of a safetensors file: its length in eight bytes, then JSON with every tensor's shape."""
    with file.open("rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
