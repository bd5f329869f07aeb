"""`arpo cluster check`: what a Ray cluster has, whether its nodes agree, and what to change before a run."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from arpo.cli.boundary import command, path
from arpo.cli.doctor import Diagnosis, Level, show
from arpo.cluster.config import ClusterConfig
from arpo.cluster.connection import Node, connected, nodes, on_nodes, version_faults
from arpo.files import cache_folder

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A Ray cluster: cluster.ranks in a recipe.")
PROBE_MB = 64
SLOW_MB_S = 100.0
"""Below that the packs of a million tokens (62 MB) take most of a second to each rank."""


@app.callback()
def cluster() -> None:
    """A Ray cluster: cluster.ranks in a recipe."""


@app.command()
@command
def check(
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The cluster (else RAY_ADDRESS, else this machine alone).")
    ] = None,
    folder: Annotated[
        Path, typer.Option(parser=path, metavar="DIR", help="Where runs are to be written, for all nodes to see.")
    ] = Path("runs"),
) -> None:
    """Look at a Ray cluster and say what to change: versions, GPUs, shared storage, bandwidth."""
    with connected(ClusterConfig(ranks=1, address=address)):
        ready = show(examine(nodes(), folder), ready="\nReady: arpo train RECIPE cluster.ranks=N")
    if not ready:
        raise typer.Exit(1)


def examine(where: Sequence[Node], folder: Path) -> Iterator[Diagnosis]:
    """The findings, as they come."""
    for node in where:
        yield Diagnosis("node", f"{node}: {node.cpus:g} CPUs, {node.gpus:g} GPUs for Ray")
    faults = version_faults(where)
    for fault in faults:
        yield Diagnosis("versions", fault, Level.PROBLEM, "install the same everywhere, for instance by one image")
    if not faults:
        yield Diagnosis("versions", "alike on all nodes")
    yield from _gpus(where)
    yield _shared("runs", folder, where, "choose --folder")
    yield _shared("cache", cache_folder(), where, "set ARPO_CACHE on all nodes to a folder")
    yield _bandwidth(where)


def _gpus(where: Sequence[Node]) -> Iterator[Diagnosis]:
    answers = on_nodes(_gpu_query(), where)
    kinds = set[str]()
    for node in where:
        names = answers[node.id]
        if isinstance(names, str):
            yield Diagnosis("gpus", f"{node}: {names}", Level.PROBLEM, "see `ray status`, and the node's own log")
            continue
        if len(names) != int(node.gpus):
            text = f"{node} has {len(names)} GPUs, and Ray was told of {node.gpus:g}"
            yield Diagnosis("gpus", text, Level.NOTE, "start Ray there with --num-gpus, after `nvidia-smi` works")
        kinds.update(names)
    if not kinds:
        yield Diagnosis(
            "gpus", "none: ranks compute on CPUs", Level.NOTE, "models of more than 1 B parameters need some"
        )
    elif len(kinds) > 1:
        text = f"of {len(kinds)} kinds: {', '.join(sorted(kinds))}"
        yield Diagnosis("gpus", text, Level.NOTE, "a step takes as long as the slowest rank: use nodes of one kind")
    else:
        yield Diagnosis("gpus", f"all {kinds.pop()}")


def _gpu_query() -> Callable[[], list[str]]:
    def names() -> list[str]:
        import shutil
        import subprocess

        if shutil.which("nvidia-smi") is None:
            return []
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()

    return names


def _shared(what: str, folder: Path, where: Sequence[Node], choose: str) -> Diagnosis:
    """Whether all nodes see what this one writes to `folder`, and can write there."""

    def probe(path: str, word: str) -> str:
        import os
        import secrets

        own = f"{path}-{secrets.token_hex(8)}"
        try:
            with open(path) as file:
                seen = file.read() == word
            with open(own, "w") as file:
                file.write(word)
            os.remove(own)
        except OSError as error:
            return str(error.strerror)
        return "" if seen else "holds something else"

    folder.mkdir(parents=True, exist_ok=True)
    word = secrets.token_hex(8)
    file = folder.absolute() / f".partial-check-{word}"
    file.write_text(word)
    try:
        answers = on_nodes(probe, where, str(file), word)
    finally:
        file.unlink()
    unseen = [f"{node}: {answers[node.id]}" for node in where if answers[node.id]]
    if not unseen:
        return Diagnosis(what, f"{folder}: all nodes read and write it")
    advice = f"{choose} on storage that all nodes mount (NFS, Lustre)"
    return Diagnosis(what, f"{folder}: {'; '.join(unseen)}", Level.PROBLEM, advice)


def _bandwidth(where: Sequence[Node]) -> Diagnosis:
    """From here to each node, through Ray's store: the way of packs and gathered weights."""
    import numpy
    import ray

    def size(block: Any) -> int:
        return int(block.nbytes)

    slow = []
    for node in where:
        on_nodes(size, [node], numpy.zeros(1))  # so that a process is there
        block = ray.put(numpy.ones(PROBE_MB << 17))
        began = time.perf_counter()
        answer = on_nodes(size, [node], block)[node.id]
        speed = PROBE_MB / (time.perf_counter() - began)
        if isinstance(answer, str) or speed < SLOW_MB_S:
            slow.append(f"{node}: {answer if isinstance(answer, str) else f'{speed:.0f} MB/s'}")
    if slow:
        advice = "packs and gathered weights go this way: put the driver into the same network, off a VPN"
        return Diagnosis("bandwidth", "; ".join(slow), Level.NOTE, advice)
    return Diagnosis("bandwidth", f"at least {SLOW_MB_S:.0f} MB/s from here to every node")
