"""CLIP embeddings of image files, kept on disk: the slow half of training a head, done once.

Consumes image files and a Clip, produces their unit embeddings; a file that changed is embedded anew, and so is
everything where the CLIP is another. Waits for nothing.

Shapes: N images, D embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.aesthetic import PROBE_IMAGE
from rewards.clip import Clip
from rewards.ratings import pixels

BATCH = 32
SAVE_EVERY = 6_400  # images between writes: an interruption costs at most these; a multiple of BATCH


class Embeddings:
    """embedded(files): one row a file; a file that is no image gets none."""

    def __init__(self, clip: Clip, cache: Path) -> None:
        self.clip, self.cache = clip, cache
        self.probe = clip.images([PROBE_IMAGE])[0].cpu()
        self.known = self._read()

    def embedded(self, files: Sequence[Path], say: Callable[[int], None]) -> dict[Path, Tensor]:
        """Embeddings (D,) by file; `say` hears now and then how many files are still to be embedded."""
        keys = {file: key(file) for file in files}
        fresh = [file for file in files if keys[file] not in self.known]
        for at in range(0, len(fresh), SAVE_EVERY):
            say(len(fresh) - at)
            for start in range(at, min(at + SAVE_EVERY, len(fresh)), BATCH):
                self._add(fresh[start : start + BATCH], keys)
            self._write()
        return {file: self.known[keys[file]] for file in files if keys[file] in self.known}

    def _add(self, files: Sequence[Path], keys: dict[Path, str]) -> None:
        images = {}
        for file in files:
            with suppress(Exception):  # Pillow has many, and each means that these bytes are no image
                images[file] = pixels(file)
        if images:
            rows = self.clip.images(list(images.values())).cpu()
            self.known |= {keys[file]: row for file, row in zip(images, rows, strict=True)}

    def _read(self) -> dict[str, Tensor]:
        if not self.cache.is_file():
            return {}
        held = load_file(self.cache)
        same = held["probe"].shape == self.probe.shape and torch.allclose(held["probe"], self.probe, atol=1e-3)
        keys = held["keys"].numpy().tobytes().hex() if same else ""
        names = [keys[at : at + 64] for at in range(0, len(keys), 64)]
        return dict(zip(names, held["rows"].unbind(), strict=True)) if same else {}

    def _write(self) -> None:
        keys = torch.from_numpy(np.frombuffer(bytes.fromhex("".join(self.known)), np.uint8).copy())
        rows = torch.stack(list(self.known.values())) if self.known else torch.zeros(0, self.clip.width)
        new = self.cache.with_suffix(".new")
        save_file({"probe": self.probe, "keys": keys, "rows": rows}, new)
        new.replace(self.cache)


def key(file: Path) -> str:
    """What an embedding hangs on: the file's place, size and time of change."""
    state = file.stat()
    return hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
