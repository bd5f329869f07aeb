"""Ranks of the learner as actors of Ray, in one placement group: `arpo.learner.ranks:Ranks` of which this process is
none.

A lost rank fails the call that waits for it, and all later ones until `restart` has made the group anew. Knows Ray.
Refuses to know what a rank does (`arpo.learner.rank`), and what is to be done again after a loss.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from arpo.cluster.config import ClusterConfig
from arpo.cluster.connection import check_versions, connected, nodes, on_nodes
from arpo.cluster.placement import bundle, fitting, numbered, reserve
from arpo.cluster.servers import RayServers
from arpo.engines.vllm.config import VllmConfig
from arpo.errors import ConfigError, LearnerError, first_line
from arpo.learner.rank import Rank, torch_rank
from arpo.learner.ranks import BROKEN, Failure, Ranks, attempt, torch_ranks
from arpo.models.loading import ModelConfig

LOOK_S = 2.0
"""Between looks at the ranks during a call."""
HUNG_S = 120.0
"""A rank whose process does not answer for as long is lost: it is stopped, swapped out, or its machine is gone."""
LATE, LATE_S = 10, 600.0
"""An update that takes so many times the median, and at least so many seconds, hangs in a collective."""
ROOM_S = 60.0
"""How long lost ranks wait for room on the cluster before fewer of them are started."""


class RayRanks:
    """`size` ranks on the cluster that this process is connected to, or fewer, a multiple of `multiple_of`, where nodes
    are lost. `logs`: the folder in which each writes what it says, on storage that all nodes share. `tell` hears where
    they are placed."""

    here = False

    def __init__(self, size: int, *, gpu: bool, logs: Path, tell: Callable[[str], None], multiple_of: int = 1) -> None:
        self.size, self.multiple_of, self.logs, self.tell = size, multiple_of, logs, tell
        self.servers: RayServers | None = None
        self._bundle = bundle(int(gpu))
        self._locks = {False: threading.Lock(), True: threading.Lock()}  # of calls in the background, and of others
        self._lost = ""
        self._seconds: list[float] = []  # of updates
        self._actors: list[Any] = []
        self._places: list[tuple[int, str]] = []  # process and node
        self._group: Any = None

    # --- the group

    def place(self) -> None:
        """Reserve room for all ranks, and tell where. Raises ConfigError where the cluster has none."""
        self._group = reserve(self.size, self._bundle, "rank", where="cluster.ranks", tell=self.tell)

    def _start(self) -> None:
        """Start the ranks where they are placed. Raises LearnerError where one is lost meanwhile."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

        self.logs.mkdir(parents=True, exist_ok=True)
        options = {"num_cpus": 1, "num_gpus": self._bundle.get("GPU", 0), "max_restarts": 0}
        # an actor's calls wait for one another, but for those of another group
        kind: Any = ray.remote
        made = kind(concurrency_groups={"background": 1, "health": 1})(RankProcess)
        self._actors = [
            made.options(**options, scheduling_strategy=In(self._group, placement_group_bundle_index=number)).remote(
                self.logs.resolve() / f"rank-{number}.log", os.getcwd()
            )
            for number in range(self.size)
        ]
        try:
            self._places = ray.get([actor.place.remote() for actor in self._actors])
            store = ray.get(self._actors[0].open_store.remote(self.size))
            ray.get([actor.join.remote(rank, self.size, *store) for rank, actor in enumerate(self._actors)])
            self._lost = ""
            self._results([actor.call.remote("import_from", (), (sys.path,)) for actor in self._actors], None)
        except ray.exceptions.RayError as error:
            self._lost = f"a rank of the learner did not start: {first_line(error)}"
            raise LearnerError(self._lost) from error

    def restart(self) -> None:
        """Make the group anew, without what the ranks held: with fewer of them where nodes are lost and none takes
        their place. Raises LearnerError."""
        self._end()
        try:
            self._make_room()
            self.place()
        except ConfigError as error:
            raise LearnerError(f"lost ranks find no room: {error.message}") from error
        self._start()

    def _make_room(self) -> None:
        import ray

        end = time.monotonic() + ROOM_S
        while True:
            free = ray.available_resources()  # others hold some of the nodes
            most = min(fitting(nodes(), self._bundle), *(int(free.get(k, 0) / n) for k, n in self._bundle.items()))
            if most >= self.size or time.monotonic() > end:
                break
            time.sleep(0.5)
        most -= most % self.multiple_of
        if 0 < most < self.size:
            self.tell(f"warning: the cluster has room for {most} of {self.size} ranks: going on with those")
            self.size = most

    def _end(self) -> None:
        """End all ranks, those that do not answer too."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._lost:  # a process that is stopped does not hear Ray
            theirs = {node for _, node in self._places}
            on_nodes(_killing(), [node for node in nodes() if node.id in theirs], self._places, timeout_s=30.0)
        self._actors, self._places = [], []
        self._remove_group()

    def _remove_group(self) -> None:
        import ray

        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None

    def close(self) -> None:
        self._end()

    # --- calls

    def call(
        self, method: str, *shared: Any, each: Sequence[tuple[Any, ...]] | None = None, background: bool = False
    ) -> list[Any]:
        with self._locks[background]:
            if self._lost:
                raise LearnerError(self._lost)
            if not self._actors:
                self._start()
            began = time.monotonic()
            group = {"concurrency_group": "background"} if background else {}
            arguments = each or [()] * len(self._actors)
            calls = [
                actor.call.options(**group).remote(method, own, shared)
                for actor, own in zip(self._actors, arguments, strict=True)
            ]
            results = self._results(calls, self._late_s() if method == "update" else None)
            if method == "update":
                self._seconds = [*self._seconds[-99:], time.monotonic() - began]
        failed = [result for result in results if isinstance(result, Failure)]
        if failed:
            raise failed[0].error
        return results

    def _late_s(self) -> float | None:
        return max(LATE_S, LATE * median(self._seconds)) if self._seconds else None

    def _results(self, calls: list[Any], late_s: float | None) -> list[Any]:
        """Raises LearnerError as soon as one is lost: the others may wait for it in a collective."""
        import ray

        began = answered = time.monotonic()
        waiting, pings, results = list(calls), list[Any](), dict[Any, Any]()
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=LOOK_S)
            results |= {one: self._result(one) for one in ready}
            if ready:
                continue
            now = time.monotonic()
            if late_s is not None and now - began > late_s:
                self._lose(f"an update takes longer than {late_s:.0f} s")
            if not pings:
                pings = [actor.ping.options(concurrency_group="health").remote() for actor in self._actors]
            _, silent = ray.wait(pings, num_returns=len(pings), timeout=0)
            if not silent:
                pings, answered = [], now
            elif now - answered > HUNG_S:
                numbers = [number for number, ping in enumerate(pings) if ping in silent]
                self._lose(f"{numbered('rank', numbers)} does not answer")
        return [results[call] for call in calls]

    def _result(self, call: Any) -> Any:
        import ray

        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if not BROKEN.search(str(error.cause)):
                raise
            self._lose(f"the connection between ranks broke: {first_line(error.cause)}")
        except ray.exceptions.RayError as error:
            self._lose(_why(error))

    def _lose(self, why: str) -> None:
        self._lost = f"a rank of the learner is lost: {why}; what the ranks said is in {self.logs}"
        raise LearnerError(self._lost)


class RankProcess:
    """A rank in a process of its own: an actor of Ray. What it says goes to `log`."""

    def __init__(self, log: Path, folder: str) -> None:
        with suppress(OSError):  # where there is no shared storage Ray keeps it
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            for standard in (1, 2):
                os.dup2(descriptor, standard)
            os.close(descriptor)
        with suppress(OSError):
            os.chdir(folder)  # the driver's, which a recipe's paths start from
        self.rank: Any = None

    def place(self) -> tuple[int, str]:
        import ray

        return os.getpid(), ray.get_runtime_context().get_node_id()

    def open_store(self, size: int) -> tuple[str, int]:
        """Where the ranks find one another: in the first of them."""
        import ray
        from torch.distributed import TCPStore

        host = ray.util.get_node_ip_address()
        self.store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        return host, self.store.port

    def join(self, number: int, size: int, host: str, port: int) -> None:
        """Make the rank: of several they share the model, one alone has it whole."""
        import torch
        import torch.distributed as dist

        if size == 1:
            self.rank = Rank()
            return
        store = self.store if number == 0 else dist.TCPStore(host, port, size, is_master=False)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size)
        self.rank = torch_rank()

    def call(self, method: str, own: tuple[Any, ...], shared: tuple[Any, ...]) -> Any:
        return _in_main_memory(attempt(self.rank, method, own, shared))

    def ping(self) -> None:
        pass


def _in_main_memory(result: Any) -> Any:
    """The driver may have no GPU. What is tied stays so."""
    import torch

    if isinstance(result, torch.Tensor):
        return result if result.is_meta else result.detach().cpu()
    if isinstance(result, dict):
        moved = {id(value): _in_main_memory(value) for value in result.values()}
        return {name: moved[id(value)] for name, value in result.items()}
    return result


def _killing() -> Callable[[Sequence[tuple[int, str]]], None]:
    """A function, sent by value, since a process that imports this module first takes seconds."""

    def kill(places: Sequence[tuple[int, str]]) -> None:
        import contextlib
        import os
        import signal

        import ray

        here = ray.get_runtime_context().get_node_id()
        for pid in [pid for pid, node in places if node == here]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return kill


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "cause" in line.lower() or "exit" in line.lower() or "died" in line.lower()]
    return (told or lines or [type(error).__name__])[0]


@contextmanager
def learner_ranks(
    config: ClusterConfig,
    model: ModelConfig,
    *,
    folder: Path,
    tell: Callable[[str], None],
    vllm: VllmConfig | None = None,
) -> Iterator[Ranks | None]:
    """The ranks that torchrun started, or those that `config` asks for, placed on the cluster and started by the first
    call; None where the model is trained in this process. They end with the block. `folder`: the run's, on storage that
    all nodes share. `vllm`: its servers are placed too, where it asks for a number of them. Raises ConfigError where
    Ray is missing, or the cluster is too small or has other versions."""
    with torch_ranks(torch_rank) as launched:
        if config.ranks is None:
            yield launched
            return
        if launched is not None:
            hint = "Start it without torchrun, or leave cluster.ranks out"
            raise ConfigError("under torchrun the ranks are its processes", where="cluster.ranks", hint=hint)
        servers = vllm.replicas if vllm is not None and isinstance(vllm.replicas, int) else 0
        with connected(config, servers), ExitStack() as stack:
            there = nodes()
            check_versions(there)
            gpu = model.device != "cpu" and any(node.gpus for node in there)
            ranks = RayRanks(config.ranks, gpu=gpu, logs=folder / "logs", tell=tell, multiple_of=model.replicas)
            stack.callback(ranks.close)
            ranks.place()
            if vllm is not None and servers:
                ranks.servers = RayServers(servers, vllm.options, gpu=gpu, folder=folder, tell=tell)
                stack.callback(ranks.servers.close)
            yield ranks
