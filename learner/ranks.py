"""The ranks of a learner: processes that share out a step's pairs and stay one learner, bit for bit.

Consumes gradients and small messages, produces their sums and all ranks' messages; waits, with a deadline, for the
other ranks. Only here is torch.distributed used; alone, a rank asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgpack
import torch
import torch.distributed as dist
from torch import Tensor

from ddpo.work import Lost

Address = tuple[str, int]


def meeting_point(host: str) -> dist.TCPStore:
    """What the ranks meet at, on a port that was free; lives in rank 0's process for as long as it is referred to."""
    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)


class Ranks:
    """This process's place among `count` that learn as one. Waits for the others raise Lost where one is gone.

    moved: is called whenever this rank has finished a part of its share; finished: how many it has, since its start
    """

    def __init__(self, rank: int = 0, count: int = 1, moved: Callable[[], None] = lambda: None) -> None:
        self.rank, self.count, self.moved, self.finished = rank, count, moved, 0
        self.device = torch.device("cpu")

    def join(self, address: Address, device: torch.device, timeout: float) -> None:
        """Meet the others; from then on sums are made on `device`, by NCCL on a GPU and by gloo in the host's memory.

        `timeout` is the longest that any rank waits for another, in seconds.
        """
        self.device, limit = device, timedelta(seconds=timeout)
        with self._waiting("to start"):
            store = dist.TCPStore(*address, is_master=False, timeout=limit)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=limit)

    def share(self, parts: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """This rank's of a minibatch's parts, every count-th, each with the number of pairs before it. One is finished
        when the next is asked for."""
        before = 0
        for number, part_P2 in enumerate(parts):
            if number % self.count == self.rank:
                yield before, part_P2
                self.finished += 1
                self.moved()
            before += len(part_P2)

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks, in one buffer; a rank without a share brings zeros."""
        if self.count == 1:
            return
        weights = list(weights)
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([part.flatten() for part in parts]).to(self.device)
        with self._waiting("for the sum of the gradients"):
            dist.all_reduce(flat)
            if self.device.type == "cuda":  # NCCL only begins; what goes wrong shows when somebody waits for the sum
                torch.cuda.synchronize(self.device)
        sums = flat.to(weights[0].device).split([weight.numel() for weight in weights])
        for weight, total in zip(weights, sums, strict=True):
            weight.grad = total.view_as(weight)

    def gather(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's message of plain values, in the order of ranks."""
        if self.count == 1:
            return [message]
        data = torch.frombuffer(bytearray(msgpack.packb(message) or b""), dtype=torch.uint8)
        with self._waiting("for the figures of the step"):
            sizes = [int(size) for size in self._all(torch.tensor([len(data)]))]
            rows = self._all(torch.nn.functional.pad(data, (0, max(sizes) - len(data))))
        return [
            msgpack.unpackb(row[:size].numpy().tobytes(), strict_map_key=False)
            for row, size in zip(rows, sizes, strict=True)
        ]

    def _all(self, tensor: Tensor) -> list[Tensor]:
        mine = tensor.to(self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(everyone, mine)
        return [one.cpu() for one in everyone]

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise Lost(f"rank {self.rank} of {self.count} waited {what} in vain: {reason:.160}") from None
