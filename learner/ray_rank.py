"""One rank of the learner on Ray: a Learner in a process of its own, which meets the others and fetches what it needs.

Consumes references to trajectories, produces reports and, from rank 0, policies and states; waits, with a deadline, for
the other ranks and for trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ddpo.types import Policy, Report
from learner.learner import Learner
from learner.ranks import Address, Ranks, meeting_point

State = dict[str, NDArray[Any]]
HUNG = 0.9  # share of its timeout after which a rank's stacks are written


class LearnerActor(Learner):
    """One rank: a Learner that fetches its trajectories itself, so that they never pass through the driver.

    Each rank fetches all of them: minibatches are drawn from the whole batch, so its share has images of every chunk.
    """

    def __init__(self, run: Run, base: BaseModel, rank: int) -> None:
        super().__init__(run, base, Ranks(rank, run.learner.ranks))

    def __repr__(self) -> str:
        """On Ray's dashboard."""
        return "learner"

    def meet(self) -> Address:
        """Where the ranks meet, on this rank's node."""
        host = ray.util.get_node_ip_address()
        self.point = meeting_point(host)
        return host, self.point.port

    def start(self, address: Address | None) -> Arrival:
        """Join the other ranks at an address; returns which code this rank runs, and on what.

        Ranks with a whole GPU each sum on it; those that share one sum on the host, since NCCL wants one for each.
        """
        if address:
            device = self.denoiser.device if self.run.learner.gpus >= 1 else torch.device("cpu")
            self.ranks.join(address, device, self.run.learner.timeout)
        return arrive(f"rank {self.ranks.rank} of the learner", self.run.policy.device)

    def learn(
        self, trajectories: list[Any], ids: Sequence[int], advantages_B: NDArray[np.float64], kept_B: NDArray[np.bool_]
    ) -> tuple[Report, Policy | None, State | None]:
        """Update; returns the report and, from rank 0, the next policy and the state to rebuild from.

        Every rank proves the batch to be that of the images `ids` before it meets the others, so all of them refuse it.
        Where it hangs, its stacks are in its log before the group ends it.
        """
        with stacks_after(HUNG * self.run.learner.timeout):
            fetched = proven(ray.get(trajectories, timeout=self.run.learner.timeout), ids)
            report = self.update(fetched, advantages_B, kept_B)
            return report, *self.published()

    def published(self) -> tuple[Policy | None, State | None]:
        """Policy and LoRA's state, a few MB; a whole UNet's, over 10 GB for SD, only where it is asked for."""
        if self.ranks.rank:
            return None, None
        return self.policy(), self.state() if self.run.policy.train == "lora" else None
