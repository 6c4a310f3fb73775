"""On what the workers of a run compute, as each says when it is up.

Consumes what they say, produces a table for run.json, and notes where it makes the run's numbers depend on which worker
was free; waits for nothing.
"""

from __future__ import annotations

import sys

from ddpo.config import Run
from ddpo.device import Hardware, shown
from deploy.placing import wanted


class Machines:
    """The kinds of hardware that each crew has been seen on, in the order in which they were."""

    def __init__(self, run: Run) -> None:
        self.run, self.kinds = run, dict[str, list[Hardware]]()

    def enter(self, crew: str, found: Hardware) -> bool:
        """Enter what a worker computes on; returns whether that is new."""
        known = self.kinds.get(crew, [])
        if found in known:
            return False
        self.kinds[crew] = [*known, found]
        return True

    def note(self, crew: str, found: Hardware) -> None:
        """The same of a worker on a cluster, where what is new may be worth a word."""
        if not self.enter(crew, found):
            return
        if text := self._idle(crew, found) or self._mixed(crew):
            print(f"Note: {text}", file=sys.stderr, flush=True)

    def table(self) -> dict[str, list[dict[str, str]]]:
        """For run.json."""
        return {crew: [dict(found) for found in kinds] for crew, kinds in sorted(self.kinds.items())}

    def _idle(self, crew: str, found: Hardware) -> str:
        """Of a worker whose own code decides, such as a function: our own do not start then."""
        wants = wanted(self.run)[crew]
        if not wants.gpus or found.get("device") != "cpu" or getattr(wants, "device", self.run.policy.device) == "cpu":
            return ""
        return (
            f"a worker of {crew} has reserved {wants.gpus:g} GPU, and torch sees none in its process. Nobody else can "
            f"use what it has reserved: mend its node's driver or torch, or write gpus = 0 for {crew}."
        )

    def _mixed(self, crew: str) -> str:
        """Of samplers: what the learner's ranks hold is compared after every step, and rewards may differ."""
        kinds = self.kinds[crew]
        if crew != "samplers" or len(kinds) < 2:
            return ""
        return (
            f"the samplers compute on {len(kinds)} kinds of hardware: {'; '.join(map(shown, kinds))}. What they draw "
            "differs from kind to kind in the last bits, so this run cannot be repeated bit for bit; the ledger says "
            "which drew which image. actors.accelerator keeps them to one kind."
        )
