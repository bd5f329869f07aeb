"""Ranks for tests, which torchrun would start: processes forked from a server that has imported what they need.

Not from the test's own process, whose threads (torch's, those of monty's runtime) a fork leaves behind with their
locks held: finalizers of such objects then wait forever in the child.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arpo.learner.rank import Rank
from arpo.learner.ranks import Ranks, follow, torch_ranks
from arpo.learner.sharding import mesh_of


class SteadyRank(Rank):
    """With a small eps AdamW makes steps of what is but rounding in a gradient of next to nothing."""

    def start(self, *settings: Any) -> None:
        super().start(*settings)
        self.optimizer.param_groups[0]["eps"] = 1e-3


def make_rank() -> Rank:
    return SteadyRank(mesh_of(torch.device("cpu")))


def on_ranks(size: int, drive: Callable[[Ranks], Any], folder: Path) -> Any:
    """What `drive` returns on rank 0 of `size` gloo ranks. Raises AssertionError with rank 0's traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rank_processes", "peft", "transformers.models.llama", "transformers.models.qwen2"])
    processes = [
        server.Process(target=_run, args=(rank, size, port, drive, folder / f"of-{size}.pt")) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    result = torch.load(folder / f"of-{size}.pt", weights_only=False)
    assert "failed" not in result, result["failed"]
    assert [process.exitcode for process in processes] == [0] * size
    return result["result"]


def _run(rank: int, size: int, port: int, drive: Callable[[Ranks], Any], path: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if follow(make_rank):
        return
    try:
        with torch_ranks(make_rank) as ranks:
            assert ranks is not None
            torch.save({"result": drive(ranks)}, path)
    except BaseException:
        torch.save({"failed": traceback.format_exc()}, path)
        raise
