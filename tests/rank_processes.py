"""Ranks for tests, which torchrun would start: processes forked from a server that has imported what they need.

Not from the test's own process, whose threads (torch's, those of monty's runtime) a fork leaves behind with their
locks held: finalizers of such objects then wait forever in the child.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
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


class Peak:
    """A context: `bytes` of memory that this process takes within it at its peak, beyond what it had."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
        self._before = self._memory("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = self._memory("VmHWM") - self._before

    @staticmethod
    def _memory(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])


def make_rank(kind: type[Rank]) -> Rank:
    return kind(mesh_of(torch.device("cpu")))


def on_ranks(size: int, drive: Callable[[Ranks], Any], folder: Path, rank: type[Rank] = SteadyRank) -> Any:
    """What `drive` returns on rank 0 of `size` gloo ranks. Raises AssertionError with rank 0's traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rank_processes", "peft", "transformers.models.llama", "transformers.models.qwen2"])
    processes = [
        server.Process(target=_run, args=(number, size, port, drive, folder / f"of-{size}.pt", rank))
        for number in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    result = torch.load(folder / f"of-{size}.pt", weights_only=False)
    assert "failed" not in result, result["failed"]
    assert [process.exitcode for process in processes] == [0] * size
    return result["result"]


def _run(rank: int, size: int, port: int, drive: Callable[[Ranks], Any], path: Path, kind: type[Rank]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if follow(partial(make_rank, kind)):
        return
    try:
        with torch_ranks(partial(make_rank, kind)) as ranks:
            assert ranks is not None
            torch.save({"result": drive(ranks)}, path)
    except BaseException:
        torch.save({"failed": traceback.format_exc()}, path)
        raise
