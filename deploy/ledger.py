"""The ledger: what became of every image of a run, so that none is lost and none counts twice.

ledger.jsonl has three kinds of lines:

    {"step": 4, "drawn": [24, 31], "version": 1, "digest": ...}
        before the batch goes to the samplers: which images (first, last), and the policy that is to draw them
    {"step": 4, "from": 24, "hardware": {"device": ..., "driver": ..., ...}}
        once its step is learned: on what its images were drawn, from this one to the next such line of the step
    {"step": 4, "image": 24, "fate": "trained", "prompt", "seed", "version", "digest", "pixels", "reward", "said"}
        once its step is learned: trained, or masked with the "reason"; by which weights it was in fact drawn, the
        sha256 of its pixels ("" where it could not be drawn), and what rewards said of it, such as captions

Image lines count from the moment that metrics.jsonl has their step; an image that is drawn and does not count yet is in
flight. No line depends on time or the order of arrival, nor, where all samplers are of one kind, on place: so a run
that was killed and resumed has the lines of one that was not. The fixed prompts of the picture grids are not in it:
nobody learns from them.

Consumes `Prompts`, `Policy` and `Scored`, produces lines; reads them back as a `Ledger`. Waits for nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpo.delivery import proven
from ddpo.types import Policy, Prompts, Scored

Line = dict[str, Any]
TRAINED, MASKED = "trained", "masked"


def drawn(prompts: Prompts, policy: Policy) -> Line:
    """The line of a batch that is about to be drawn."""
    first, last = prompts.ids[0], prompts.ids[-1]
    return {"step": prompts.step + 1, "drawn": [first, last], "version": policy.version, "digest": policy.digest}


def machines(scored: Scored, step: int) -> Iterator[Line]:
    """The lines that say on what a batch was drawn: of its first chunk, and of each that is of another kind than the
    one before it."""
    before: Mapping[str, str] | None = None
    for receipt in scored.receipts:
        if receipt.hardware != before:
            yield {"step": step, "from": receipt.ids[0], "hardware": dict(receipt.hardware)}
        before = receipt.hardware


def fates(scored: Scored, step: int) -> Iterator[Line]:
    """The lines of a batch's images, in their order; raises DeliveryError where the receipts are of other images, whose
    pixels and weights these lines would then name."""
    marks = [(mark, pixels) for mark in proven(scored.receipts, scored.prompts.ids) for pixels in mark.pixels]
    for row, (image, (receipt, pixels)) in enumerate(zip(scored.prompts.ids, marks, strict=True)):
        reason, reward = scored.masked.get(image), float(scored.rewards_B[row])
        said = {name: {key: values[row] for key, values in info.items()} for name, info in scored.info.items() if info}
        yield {
            "step": step, "image": image, "fate": TRAINED if reason is None else MASKED,
            **({} if reason is None else {"reason": reason}),
            "prompt": scored.prompts.text[row], "seed": scored.prompts.seeds[row],
            "version": receipt.version, "digest": receipt.digest, "pixels": pixels,
            "reward": None if math.isnan(reward) else reward, **({"said": said} if said else {}),
        }


@dataclass(frozen=True)
class Ledger:
    """What ledger.jsonl holds, by step: the batches that were drawn, on what, and the fates of images.

    damaged: numbers of lines that are none of these kinds; a last one that a crash cut short is not among them
    """

    batches: dict[int, list[Line]] = field(default_factory=dict)
    machines: dict[int, list[Line]] = field(default_factory=dict)
    images: dict[int, list[Line]] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)

    def hardware(self, line: Line) -> Mapping[str, str]:
        """What the image of a line was drawn on; empty where the ledger does not say."""
        before = [entry for entry in self.machines.get(line["step"], []) if entry["from"] <= line["image"]]
        return before[-1]["hardware"] if before else {}


def read(path: Path) -> Ledger:
    """The ledger in a file; empty where there is none yet."""
    ledger = Ledger()
    for number, line in enumerate(_lines(path), 1):
        match _parsed(line):
            case {"step": int(step), "drawn": [int(), int()], "version": int(), "digest": str()} as entry:
                ledger.batches.setdefault(step, []).append(entry)
            case {"step": int(step), "from": int(), "hardware": dict()} as entry:
                ledger.machines.setdefault(step, []).append(entry)
            case {
                "step": int(step), "image": int(), "fate": str(), "prompt": str(), "seed": int(), "version": int(),
                "digest": str(), "pixels": str(), "reward": int() | float() | None,
            } as entry:
                ledger.images.setdefault(step, []).append(entry)
            case _:
                ledger.damaged.append(number)
    return ledger


def _lines(path: Path) -> Iterator[bytes]:
    """One at a time; what stands after the last end of a line was cut short."""
    if path.exists():
        with path.open("rb") as lines:
            yield from (line for line in lines if line.endswith(b"\n"))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
