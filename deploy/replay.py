"""`ddpo replay`: draws any image of a run again, from its line in the ledger and the policy that drew it.

Consumes a run folder and an image's number, produces a PNG and whether it is the image that the run drew, bit for bit;
waits for the whole chunk that the image was part of, since the size of a batch shows in the last bits of its rows.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ddpo.base import find
from ddpo.config import Run
from ddpo.device import Hardware
from ddpo.errors import InputError, LedgerError
from ddpo.types import Prompts
from deploy import policies
from deploy.audit import opened
from deploy.cluster import GPU_SETTINGS, thread_settings
from deploy.facts import facts
from deploy.folder import RunFolder, write
from deploy.ledger import Ledger, Line, read

COMPARED = ("torch", "diffusers", "transformers", "peft", "python", "host", "ddpo_version", "git_commit")


@dataclass(frozen=True)
class Replay:
    """An image that was drawn again.

    line:    its line in the ledger
    same:    whether its pixels are those that the run drew
    changes: what ledger and run.json have otherwise than it is here
    """

    file: Path
    line: Line
    same: bool
    changes: Sequence[str]

    def check(self) -> None:
        """Raise LedgerError where it is another image than the run drew."""
        if not self.same:
            found = "; ".join(self.changes) or "nothing that the ledger and run.json name"
            raise LedgerError(
                f"image {self.line['image']} was drawn again ({self.file}), but its pixels are not those of the run "
                f"(sha256 {self.line['pixels'][:12]} in the ledger). What is drawn is the same bit for bit only on "
                f"equal hardware and library versions. Here differs: {found}."
            )


def replay(path: Path, image: int, out: Path | None) -> Replay:
    """Draw an image of a run folder again; raises InputError or LedgerError where that cannot be done."""
    folder, run = opened(path)
    chunk = _chunk(folder, image, run.actors.batch)
    line = next(line for line in chunk if line["image"] == image)
    file = out or Path(f"{folder.path.resolve().name}-{image}.png")
    if not line["pixels"]:
        raise InputError(f"image {image} of {folder.path} has no pixels: {line.get('reason', 'it was not drawn')}.")
    pixels, mark, here = _draw(folder, run, chunk, image)
    try:
        write(file, _png(pixels))
    except OSError as error:
        raise InputError(f"--out: {file} cannot be written: {error.strerror}. Give another file.") from None
    changes = [*_differing(read(folder.ledger_file).hardware(line), here), *_changes(folder)]
    return Replay(file, line, mark == line["pixels"], list(dict.fromkeys(changes)))


def _chunk(folder: RunFolder, image: int, size: int) -> list[Line]:
    """The lines of all images that were denoised together with this one."""
    ledger = read(folder.ledger_file)
    lines = {line["image"]: line for some in ledger.images.values() for line in some}
    chunk = range(image // size * size, (image // size + 1) * size)
    if not all(number in lines for number in chunk):
        raise InputError(f"image {image} of {folder.path} cannot be drawn again: {_missing(image, lines, ledger)}.")
    return [lines[number] for number in chunk]


def _missing(image: int, lines: Mapping[int, Line], ledger: Ledger) -> str:
    """Why the ledger lacks the image, or one that was drawn with it."""
    if image in lines:
        return "the ledger lacks others of its chunk, with which it was drawn; `ddpo audit` says which"
    if any(some[0]["drawn"][0] <= image <= some[0]["drawn"][1] for some in ledger.batches.values()):
        return "it is in flight, that is drawn, but its step is not learned yet; or its line was lost (`ddpo audit`)"
    return f"the ledger has images {min(lines, default=0)} to {max(lines, default=0)}"


def _draw(folder: RunFolder, run: Run, chunk: Sequence[Line], image: int) -> tuple[Any, str, Hardware]:
    """The image's pixels, their sha256, and on what they were drawn, within its chunk as by a sampler of the run."""
    line = next(line for line in chunk if line["image"] == image)
    policy = policies.find(folder, line["version"], line["digest"])
    os.environ.update(thread_settings(run.actors.threads) | GPU_SETTINGS)
    from actors.sampler import Sampler

    prompts = Prompts(
        line["step"] - 1, tuple(one["image"] for one in chunk), tuple(one["prompt"] for one in chunk),
        ({},) * len(chunk), tuple(one["seed"] for one in chunk),
    )
    images, _, receipt = Sampler(run, find(run.policy.base)).sample(prompts, policy)
    if image not in images.ids:
        raise LedgerError(f"image {image} was drawn again and is none here: {receipt.failures[image]}.")
    pixels = images.pixels_BYX3[images.ids.index(image)]
    return pixels, receipt.pixels[prompts.ids.index(image)], receipt.hardware


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _changes(folder: RunFolder) -> list[str]:
    try:
        then: Mapping[str, Any] = json.loads((folder.path / "run.json").read_text())
    except (OSError, ValueError):
        return ["run.json, which cannot be read"]
    now = facts(True)
    return _differing({key: then.get(key) for key in COMPARED}, {key: now[key] for key in COMPARED})


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Of what was noted then: what is otherwise now."""
    return [f"{key} {value} then, {now.get(key, 'none')} now" for key, value in then.items() if now.get(key) != value]


def render(found: Replay) -> str:
    """What was drawn, and whether it is the same."""
    line = found.line
    reward = f"reward {line['reward']:.4g}" if line["reward"] is not None else line.get("reason", "no reward")
    return (
        f"image {line['image']}: \"{line['prompt']}\", seed {line['seed']}, step {line['step']}, policy "
        f"{line['version']} ({line['digest'][:12]}), {line['fate']}, {reward}\n"
        f"{found.file}: {'bit for bit the image that the run drew' if found.same else 'not the image of the run'}"
    )
