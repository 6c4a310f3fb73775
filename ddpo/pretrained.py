"""Networks out of folders or from the hub, whole or not at all.

Consumes a class of diffusers or transformers and a folder or hub name, produces the network; waits for the hub where it
is given a hub name.
"""

from __future__ import annotations

from typing import Any


def whole(kind: Any, folder: str, **options: Any) -> Any:
    """kind.from_pretrained, from safetensors; raises ValueError where weights are missing, which diffusers and
    transformers would draw at random, with a warning at most."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **options)
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise ValueError(f"{len(info['missing_keys'])} of its weights are not there, {first} for one")
    return model
