"""The connection to a Ray cluster, and what its nodes are and have installed."""

import logging
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from arpo.cluster.config import ClusterConfig
from arpo.errors import ConfigError, first_line, install

CONNECT_S = 10.0
ANSWER_S = 60.0
"""Most that a node may take to start a process and answer."""
PACKAGES = ("arpo", "torch", "transformers", "ray", "safetensors", "peft")
"""What must be the same on all nodes."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. `cpus` and `gpus` are those that Ray may use."""

    id: str
    address: str
    host: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


@contextmanager
def connected(config: ClusterConfig, others: int = 0) -> Iterator[None]:
    """A connection to the cluster of `config`, which ends with the block; the one that the program has, where it has
    one. `others`: actors beside the ranks, for which a Ray on this machine alone has room. Raises ConfigError where Ray
    is missing or does not answer."""
    if find_spec("ray") is None:
        raise ConfigError("this needs Ray", where="cluster.ranks", value=config.ranks, hint=install("cluster"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    room = max(os.cpu_count() or 1, (config.ranks or 1) + others)
    alone: dict[str, Any] = {} if address else {"num_cpus": room, "include_dashboard": False}
    try:
        if address and (parts := re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d+)", address)):
            socket.create_connection((parts[1], int(parts[2])), timeout=CONNECT_S).close()  # Ray tries for minutes
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where, said = ("cluster.address", address) if config.address else ("RAY_ADDRESS", address)
        hint = "`ray status` on a node of the cluster says whether it runs; its Python and Ray must be those of here"
        raise ConfigError(f"no Ray answers: {first_line(error)}", where=where, value=said, hint=hint) from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray

    return [
        Node(
            id=each["NodeID"],
            address=each["NodeManagerAddress"],
            host=each["NodeManagerHostname"],
            cpus=each["Resources"].get("CPU", 0.0),
            gpus=each["Resources"].get("GPU", 0.0),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]


def on_nodes(function: Callable[..., Any], where: Sequence[Node], *arguments: Any, timeout_s: float = ANSWER_S) -> dict:
    """What `function` returns on each node, by the node's id; a text where it fails or is late. Takes no CPU from
    others. It is sent by value where it is a nested one: a node need not have arpo."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    calls = {node.id: remote.options(scheduling_strategy=On(node.id, soft=False)).remote(*arguments) for node in where}
    end, results = time.monotonic() + timeout_s, {}
    for node, call in calls.items():
        try:
            results[node] = ray.get(call, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            results[node] = f"did not answer within {timeout_s:g} s"
        except ray.exceptions.RayError as error:
            results[node] = first_line(error)
    return results


def versions_of() -> Callable[[Sequence[str]], dict[str, str]]:
    """A function, sent by value, that says which Python and packages a node has (`-`: none)."""

    def versions(packages: Sequence[str]) -> dict[str, str]:
        import importlib.metadata
        import platform

        found = {"python": platform.python_version()}
        for package in packages:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "-"
        return found

    return versions


def version_faults(where: Sequence[Node]) -> list[str]:
    """What nodes have installed otherwise than this process: a line each, empty where all are alike."""
    here = versions_of()(PACKAGES)
    faults = []
    by_node = on_nodes(versions_of(), where, PACKAGES)
    for node in where:
        there = by_node[node.id]
        if isinstance(there, str):
            faults.append(f"{node}: {there}")
            continue
        unlike = [f"{name} {there[name]} (here {here[name]})" for name in here if there[name] != here[name]]
        if unlike:
            faults.append(f"{node} has {', '.join(unlike)}")
    return faults


def check_versions(where: Sequence[Node]) -> None:
    """Raises ConfigError where nodes have other versions than this process."""
    if faults := version_faults(where):
        hint = "Install the same on all nodes, for instance one image; this one: " + platform.node()
        raise ConfigError(f"the nodes differ: {'; '.join(faults)}", where="cluster.address", hint=hint)
