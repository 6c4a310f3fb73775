"""Proof that what came for a batch is the batch: every image once, in the order of the prompts.

Consumes ids of images, produces nothing or a DeliveryError; waits for nothing. Rewards, advantages and the ledger name
images by their place alone, so nothing else would notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Protocol, TypeVar

from ddpo.errors import DeliveryError


class Part(Protocol):
    """A chunk's Trajectory or Receipt: what is of these images."""

    @property
    def ids(self) -> tuple[int, ...]: ...


P = TypeVar("P", bound=Part)


def proven(parts: Sequence[P], ids: Sequence[int]) -> Sequence[P]:
    """The parts, if they are of the images `ids`, each once and in this order; raises DeliveryError."""
    found = list(chain.from_iterable(part.ids for part in parts))
    for place, (there, due) in enumerate(zip_longest(found, ids)):
        if there != due:
            raise DeliveryError(
                f"the batch of images {ids[0]}..{ids[-1]} came as {len(found)} of {len(ids)} images; the first that is "
                f"wrong is number {place + 1}, {_image(there)} where {_image(due)} is due. An image would be trained "
                "twice, not at all or with another's advantage, while the ledger calls each trained once. A sampler or "
                "a pool has mixed up chunks, a fault of the program: please report it. `--resume` goes on from the "
                "last checkpoint."
            )
    return parts


def _image(number: int | None) -> str:
    return "none" if number is None else f"image {number}"
