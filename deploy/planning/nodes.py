"""The nodes of a cluster: those that are there, or those that a cluster file may start.

Consumes a dashboard's address, or a file of `ray up` or KubeRay; produces `Node`s; waits, with a deadline, for the
dashboard to answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpo.errors import InputError
from deploy.jobs.submission import connect, dashboard
from deploy.planning.room import Node

ANSWER = 20  # seconds for the dashboard
GROUP = "ray.io/node-group"  # Ray's label with the type of a node, of clusters made by `ray up` or KubeRay
KUBERNETES = ("RayCluster", "RayJob")


def there(address: str) -> list[Node]:
    """The nodes that live, asked of the dashboard; raises InputError where it does not answer."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    connect(address)  # which says why it does not let us in
    try:
        found: Any = list_nodes(
            dashboard(address), filters=[("state", "=", "ALIVE")], detail=True, limit=10_000, timeout=ANSWER
        )
    except RayStateApiException as error:
        raise InputError(f"the dashboard at {dashboard(address)} does not tell its nodes: {error}") from None
    return [_node(node.node_ip, node.resources_total, node.labels) for node in found]


def grow(nodes: Sequence[Node]) -> bool:
    """Whether there may be more nodes than are there: theirs is a cluster with an autoscaler."""
    return any(GROUP in node.labels for node in nodes)


def promised(path: Path) -> list[Node]:
    """Every node that a cluster file may start, each type as often as it allows; raises InputError."""
    import yaml

    try:
        parts = [part for part in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(part, dict)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--cluster {path} cannot be read: {error}") from None
    types = next((found for part in parts if (found := _types(part))), None)
    if types is None:
        raise InputError(
            f"--cluster {path} says not which nodes it may start: it has no available_node_types (of `ray up`) and is "
            "no RayCluster or RayJob. Of machines that are always there, start the cluster and give --address."
        )
    return [_typed(name, part, path) for name, part in types.items() for _ in range(_most(name, part, parts))]


def _types(part: dict[str, Any]) -> dict[str, Any] | None:
    """Ray's own reading of the node types."""
    if part.get("kind") not in KUBERNETES:
        return part.get("available_node_types")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = part["spec"]["rayClusterSpec"] if part["kind"] == "RayJob" else part["spec"]
    cluster = {"metadata": {"name": "ddpo", "namespace": "default"}, "spec": spec}
    return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


def _most(name: str, part: dict[str, Any], parts: list[dict[str, Any]]) -> int:
    """Of the head's type there is one, whatever its max_workers."""
    head = next((one["head_node_type"] for one in parts if "head_node_type" in one), "headgroup")
    return 1 if name == head else int(part.get("max_workers", 0))


def _typed(name: str, part: dict[str, Any], path: Path) -> Node:
    resources = part.get("resources") or {}
    if "CPU" not in resources:
        raise InputError(f"--cluster {path}: node type {name} says not how many CPUs it has. Write resources: "
                         "{CPU: ..., GPU: ...}; what the cloud would tell Ray later is needed now.")
    return _node(name, resources, part.get("labels") or {})


def _node(kind: str, resources: dict[str, Any], labels: dict[str, str]) -> Node:
    return Node(kind, float(resources.get("CPU", 0)), float(resources.get("GPU", 0)), labels)
