"""What Prometheus is told of a run: by way of Ray, which exports all of it on its nodes' endpoints as ray_ddpo_NAME.

Consumes the states of the pools and the lines of metrics.jsonl, produces gauges, counters and histograms with the tag
`run`; waits for nothing. Every name here is in the queries of deploy/grafana/ddpo.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddpo.pool import State

STAGES = "Seconds a step: of all its workers together for a pool, of the driver for learn, wait, log and total"
BOUNDS = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 600.0, 1800.0]
POOL = {  # one value for every pool
    "workers": "Workers that are up",
    "workers_starting": "Workers that are being placed or load their models",
    "workers_busy": "Workers that have a chunk in hand",
    "workers_limit": "How many workers the pool may grow to",
    "backlog": "Chunks that wait for a worker",
    "chunk_seconds": "Seconds that a chunk takes a worker, mean of the last ones",
    "utilisation": "Share of its time that a worker of the pool, or the learner, was busy",
}
STEP = {  # one value for every run; of the newest step
    "step": "Steps that have been learned",
    "steps": "Steps that the run shall have",
    "lag": "How many steps old the policy was that drew the batch",
    "reward_mean": "Reward that is optimised, mean over the batch",
    "reward_std": "Reward that is optimised, standard deviation over the batch",
    "ratio_min": "Smallest ratio of an image's step under the learner's and the sampler's policy",
    "ratio_max": "Largest such ratio",
    "clip_fraction": "Share of the trained pairs whose ratio was clipped",
    "approx_kl": "KL from the policy that drew the batch, estimated",
    "base_kl": "KL from the base model, where it is measured",
    "effective_sample_size": "(sum w)^2 / sum w^2 as a share of the pairs",
    "grad_norm": "Norm of the gradient before clipping, mean over updates",
    "loss": "Loss, mean over the trained pairs",
}
COUNTED = {
    "images_sampled": "Images drawn, those of grids as well",
    "images_scored": "Images that went through a pool of reward workers, those of grids as well",
    "images_trained": "Images that were trained on",
    "images_masked": "Images that were left out of training, with the reason in the ledger",
    "weights_bytes": "Bytes of weights that the learner published",
    "workers_lost": "Workers that died or were killed because they hung; Ray restarts them",
}
TAGGED = {
    **dict.fromkeys([*POOL, "images_sampled", "images_scored", "workers_lost"], "pool"),
    "reward": "reward", "stage_seconds": "stage",
}


class Metrics:
    """The metrics of one run."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        def make(kind: Any, name: str, says: str, **options: Any) -> Any:
            tags = ("run", TAGGED[name]) if name in TAGGED else ("run",)
            return kind(f"ddpo_{name}", says, tag_keys=tags, **options).set_default_tags({"run": run})

        gauges = {**POOL, **STEP, "reward": "Every reward by itself, mean over the batch"}
        self.gauges = {name: make(Gauge, name, says) for name, says in gauges.items()}
        self.counters = {name: make(Counter, name, says) for name, says in COUNTED.items()}
        self.stages = make(Histogram, "stage_seconds", STAGES, boundaries=BOUNDS)
        self.totals: dict[tuple[str, str], int] = {}

    def pools(self, states: Sequence[State]) -> None:
        """How the pools stand now."""
        for state in states:
            values = {
                "workers": state.workers, "workers_starting": state.starting, "workers_busy": state.running,
                "workers_limit": state.high, "backlog": state.waiting, "chunk_seconds": state.service,
                "utilisation": state.load / max(1, state.workers),
            }
            for name, value in values.items():
                self._set(name, value, state.name)
            self.count_to("images_sampled" if state.name == "samplers" else "images_scored", state.images, state.name)
            self.count_to("workers_lost", state.lost, state.name)

    def newest(self, row: Mapping[str, Any], steps: int) -> None:
        """The values of the newest step; to be told again and again, since Ray forgets a gauge that is not set."""
        for name in STEP:
            self._set(name, steps if name == "steps" else row[name])
        for name, value in row["rewards"].items():
            self._set("reward", value, name)
        self._set("utilisation", row["seconds"]["learn"] / row["seconds"]["total"], "learner")

    def learned(self, row: Mapping[str, Any], weights: int) -> None:
        """That a step was learned and so many bytes of weights published; once a step."""
        for name, value in (("trained", row["images"]), ("masked", row["images_masked"])):
            self._add(f"images_{name}", value)
        self._add("weights_bytes", weights)
        seconds = {"samplers" if name == "sample" else name.removeprefix("score "): value
                   for name, value in row["seconds"].items() if name != "score"}
        for stage, value in seconds.items():
            self.stages.observe(value, {"stage": stage})

    def count_to(self, name: str, total: int, pool: str) -> None:
        """Have a counter stand at a total that somebody else counts."""
        self._add(name, total - self.totals.get((name, pool), 0), pool)
        self.totals[name, pool] = total

    def _set(self, name: str, value: float | None, tag: str = "") -> None:
        if value is not None and math.isfinite(value):
            self.gauges[name].set(value, {TAGGED[name]: tag} if tag else None)

    def _add(self, name: str, value: int, tag: str = "") -> None:
        if value > 0:
            self.counters[name].inc(value, {TAGGED[name]: tag} if tag else None)
