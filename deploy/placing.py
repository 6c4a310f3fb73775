"""On which nodes of a cluster a worker may run: by the nodes' labels, where they have any.

Consumes what a worker asks for and the cluster's nodes, produces label selectors for actors and placement groups; waits
for nothing. Ray's own fallback_strategy is for actors alone (placement groups have none) and takes whatever node is up
while the right one is still starting: a reward for a cheap CPU would sit down beside an A100. So the fallback is of the
whole cluster: where no node has a role, as on one machine or under Slurm, roles do not matter.
"""

from __future__ import annotations

from typing import Any

from ddpo.config import Run
from ddpo.stages import stages

ROLE, ACCELERATOR = "role", "ray.io/accelerator-type"


def wanted(run: Run) -> dict[str, Any]:
    """What a worker of each pool, and a rank of the learner, asks for: its cpus, gpus, role and accelerator."""
    return {"samplers": run.actors, **{stage.pool: stage.wants for stage in stages(run.rewards)},
            "learner": run.learner}


def labels(wants: Any, roles: bool) -> dict[str, str]:
    """Labels that a node must have for such a worker, on a cluster with `roles` or without."""
    role = wants.role
    if role == "auto":
        role = "reward-gpu" if wants.gpus else "reward-cpu"
    return {key: value for key, value in ((ROLE, role if roles else ""), (ACCELERATOR, wants.accelerator)) if value}


def labels_here(wants: Any) -> dict[str, str]:
    """The same on the connected cluster: it has roles if any of its nodes has one, the head included."""
    import ray

    return labels(wants, any(ROLE in node["Labels"] for node in ray.nodes() if node["Alive"]))


def shown(needed: dict[str, str]) -> str:
    """For a message: where the worker may run."""
    return " on nodes with " + ", ".join(f"{key}={value}" for key, value in needed.items()) if needed else ""
