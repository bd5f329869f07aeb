"""Placement groups: room for actors on the cluster's nodes, reserved before anything starts."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arpo.cluster.connection import Node, nodes
from arpo.errors import ConfigError

PATIENCE_S = 30.0
"""How long a reservation waits for other work on the cluster to end."""


def bundle(gpus: int) -> dict[str, float]:
    """What an actor takes of a node."""
    return {"CPU": 1.0, "GPU": float(gpus)} if gpus else {"CPU": 1.0}


def fitting(where: Sequence[Node], each: Mapping[str, float]) -> int:
    """How many such bundles the nodes have room for when nothing else runs."""
    return sum(
        int(min(node.cpus / each["CPU"], node.gpus / each["GPU"] if "GPU" in each else node.cpus)) for node in where
    )


def reserve(count: int, each: Mapping[str, float], name: str, *, where: str, tell: Callable[[str], None]) -> Any:
    """A placement group of `count` bundles, as near to one another as they fit; tells which `name` (a server, a rank)
    is on which node. `where`: the key of the recipe that asks for them. Raises ConfigError where there is no room."""
    import ray

    kind = "GPUs" if "GPU" in each else "CPUs"
    what = f"{each['GPU']:g} GPU{'s' if each['GPU'] > 1 else ''} of one node" if "GPU" in each else "a CPU"
    most = fitting(nodes(), each)
    if most < count:
        hint = f"{most} at most, or more nodes" if most else "Add nodes that have some"
        problem = f"the cluster has room for {most} {name}s, each with {what}"
        raise ConfigError(problem, where=where, value=count, hint=hint)
    group = ray.util.placement_group([dict(each)] * count, strategy="PACK")
    if not group.wait(PATIENCE_S):
        ray.util.remove_placement_group(group)
        free = ray.available_resources().get(kind[:3], 0.0)
        problem = f"other work holds the cluster: {free:g} {kind} are free"
        raise ConfigError(problem, where=where, value=count, hint="`ray status` says who has them")
    placed = ray.util.placement_group_table(group)["bundles_to_node_id"]
    by_node: dict[str, list[int]] = {}
    for number, node in sorted(placed.items()):
        by_node.setdefault(node, []).append(int(number))
    named = {node.id: str(node) for node in nodes()}
    places = "; ".join(f"{numbered(name, own)} on {named.get(node, node)}" for node, own in by_node.items())
    tell(f"placed: {places}; {what} each; driver on {os.uname().nodename}")
    return group


def numbered(name: str, numbers: Sequence[int]) -> str:
    return f"{name}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
