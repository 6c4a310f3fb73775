"""One rank of the learner on Ray: a Learner in a process of its own, which meets the others and fetches what it needs.

Consumes references to trajectories, produces reports and, from rank 0, policies and states; waits, with a deadline, for
the other ranks and for trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from ddpo.arrival import Arrival, arrive
from ddpo.base import BaseModel
from ddpo.config import Run
from ddpo.deadline import stacks_after
from ddpo.delivery import proven
from ddpo.device import fitting
from ddpo.types import Policy, Report
from learner.learner import FEWER, Learner
from learner.ranks import Address, Ranks, meeting_point

State = dict[str, NDArray[Any]]
GROUPS = {"progress": 1}  # threads beside the one that works, by the group of methods that they run
HUNG = 0.9  # share of learner.timeout without a micro-batch after which a rank's stacks are written
MEETING = 10  # times learner.timeout that a rank waits for the others; the driver sees who moves, and ends all before


class LearnerActor:
    """One rank: a Learner that fetches its trajectories itself, so that they never pass through the driver.

    Each rank fetches all of them: minibatches are drawn from the whole batch, so its share has images of every chunk.

    Ray runs all methods but `progress` one after the other in one thread, which is not the main one since there is a
    second group of methods. The learner is made there too: torch keeps threads of its own for every thread that has
    called it, and two such sets on the same cores slow each other down.
    """

    def __init__(self, run: Run, base: BaseModel, rank: int) -> None:
        self.run, self.base = run, base
        self.ranks = Ranks(rank, run.learner.ranks, self._moved)
        self.fetched = 0
        self.alive: Callable[[], None] = lambda: None  # puts off the writing of stacks

    def __repr__(self) -> str:
        """On Ray's dashboard."""
        return "learner"

    def meet(self) -> Address:
        """Where the ranks meet, on this rank's node."""
        host = ray.util.get_node_ip_address()
        self.point = meeting_point(host)
        return host, self.point.port

    def start(self, address: Address | None) -> Arrival:
        """Load the model and join the other ranks at an address; returns which code this rank runs, and on what.

        Ranks with a whole GPU each sum on it; those that share one sum on the host, since NCCL wants one for each.
        """
        self.learner = Learner(self.run, self.base, self.ranks)
        if address:
            device = self.learner.denoiser.device if self.run.learner.gpus >= 1 else torch.device("cpu")
            self.ranks.join(address, device, MEETING * self.run.learner.timeout)
        return arrive(f"rank {self.ranks.rank} of the learner", self.run.policy.device)

    @ray.method(concurrency_group="progress", enable_task_events=False)
    def progress(self) -> int:
        """Grows with every micro-batch; answered while another method works, in a thread that touches no torch."""
        return self.fetched + self.ranks.finished

    def _moved(self) -> None:
        self.alive()

    def learn(
        self, trajectories: list[Any], ids: Sequence[int], advantages_B: NDArray[np.float64], kept_B: NDArray[np.bool_]
    ) -> tuple[Report, Policy | None, State | None]:
        """Update; returns the report and, from rank 0, the next policy and the state to rebuild from.

        Every rank proves the batch to be that of the images `ids` before it meets the others, so all of them refuse it.
        Where it hangs, its stacks are in its log before the group ends it.
        """
        with stacks_after(HUNG * self.run.learner.timeout) as self.alive:
            fetched = proven(ray.get(trajectories, timeout=self.run.learner.timeout), ids)
            self.fetched += 1
            self.alive()
            with fitting(f"learn from {self.run.learner.micro_batch} pairs at once", FEWER):
                report = self.learner.update(fetched, advantages_B, kept_B)
        self.alive = lambda: None
        return report, *self.published()

    def published(self) -> tuple[Policy | None, State | None]:
        """Policy and LoRA's state, a few MB; a whole UNet's, over 10 GB for SD, only where it is asked for."""
        if self.ranks.rank:
            return None, None
        return self.learner.policy(), self.state() if self.run.policy.train == "lora" else None

    def state(self) -> State:
        """As Learner's."""
        return self.learner.state()

    def restore(self, step: int, arrays: State, known: Sequence[tuple[int, str]]) -> None:
        """As Learner's."""
        self.learner.restore(step, arrays, known)
