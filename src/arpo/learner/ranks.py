"""The seam between the learner's driver and its ranks: "call this method of every rank".

`OneRank` is a rank in this process. `TorchRanks` are the processes that torchrun started: rank 0 drives and is a rank
itself, the others `follow`. Commands go over a gloo group of their own, whatever the ranks' tensors go over; what is
done in the background, such as writing a checkpoint, over another one. Those on a Ray cluster are
`arpo.cluster.ranks:RayRanks`. Knows processes and messages. Refuses to know
what a rank does (`arpo.learner.rank`).
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from arpo.errors import ArpoError, LearnerError, first_line
from arpo.terminal_safe import print_line

PATIENCE = timedelta(days=365)
"""How long a follower waits for the next command: sampling may take hours."""

BROKEN = re.compile(r"gloo|nccl|connection|broken pipe|socket|timed out", re.IGNORECASE)
"""What errors say where the process at the other end is gone."""


class Ranks(Protocol):
    """The ranks of a learner, each with a shard of the model."""

    size: int
    here: bool
    """Whether the first of them is this process."""

    def call(
        self, method: str, *shared: Any, each: Sequence[tuple[Any, ...]] | None = None, background: bool = False
    ) -> list[Any]:
        """Call `method` of every rank, with its own arguments (`each`) and then the `shared` ones. Returns what the
        ranks returned, in their order. One call runs at a time, and beside it one in the `background`, which each rank
        does in another thread. Raises what the rank raised; LearnerError where a rank is lost, and then for every later
        call (until those on Ray start anew)."""
        ...

    def close(self) -> None:
        """End the followers."""
        ...


class OneRank:
    """One rank, in this process."""

    size = 1
    here = True

    def __init__(self, rank: Any) -> None:
        self.rank = rank

    def call(
        self, method: str, *shared: Any, each: Sequence[tuple[Any, ...]] | None = None, background: bool = False
    ) -> list[Any]:
        return [getattr(self.rank, method)(*(each[0] if each else ()), *shared)]

    def close(self) -> None:
        pass


class TorchRanks:
    """The ranks that torchrun started, driven by rank 0, whose process this is. `rank`: its own."""

    here = True

    def __init__(self, rank: Any, commands: dist.ProcessGroup, background: dist.ProcessGroup) -> None:
        self.size = dist.get_world_size()
        self._commands, self._background = _Caller(rank, commands), _Caller(rank, background)

    def call(
        self, method: str, *shared: Any, each: Sequence[tuple[Any, ...]] | None = None, background: bool = False
    ) -> list[Any]:
        caller = self._background if background else self._commands
        return caller.call(method, shared, each or [()] * self.size)

    def check(self) -> None:
        """Raises LearnerError where a rank is lost."""
        self.call("import_from", sys.path)

    def close(self) -> None:
        self._background.close()
        self._commands.close()
        with suppress(RuntimeError):
            dist.destroy_process_group()


class _Caller:
    """Calls all ranks over `group`, one call at a time."""

    def __init__(self, rank: Any, group: dist.ProcessGroup) -> None:
        self.rank, self.group = rank, group
        self._lock = threading.Lock()
        self._lost = ""

    def call(self, method: str, shared: tuple[Any, ...], each: Sequence[tuple[Any, ...]]) -> list[Any]:
        with self._lock:
            if self._lost:
                raise LearnerError(self._lost)
            own, *others = each
            self._lost = "the ranks of the learner stopped in the middle of a call"  # unless this one comes to its end
            try:
                _scatter([None, *((method, arguments, shared) for arguments in others)], self.group)
                result = attempt(self.rank, method, own, shared)
                dist.gather_object(None, gathered := [None] * len(each), dst=0, group=self.group)
            except RuntimeError as error:
                if not BROKEN.search(str(error)):
                    raise
                self._lost = f"a rank of the learner is gone, and says why above: {first_line(error)}"
                raise LearnerError(self._lost) from error
            self._lost = ""
            results = [result, *gathered[1:]]
        failed = [result for result in results if isinstance(result, Failure)]
        if failed:
            raise failed[0].error
        return results

    def close(self) -> None:
        with self._lock, suppress(RuntimeError):  # one that is gone needs no farewell
            if not self._lost:
                _scatter([None] * self.group.size(), self.group)


class Failure:
    """An error that every rank comes to alike: a user's mistake."""

    def __init__(self, error: ArpoError) -> None:
        self.error = error


def attempt(rank: Any, method: str, own: tuple[Any, ...], shared: tuple[Any, ...]) -> Any:
    """What a rank returns; a Failure for an error that a user can act on."""
    try:
        return getattr(rank, method)(*own, *shared)
    except ArpoError as error:
        return Failure(error)


def _scatter(messages: list[Any], group: dist.ProcessGroup) -> None:
    dist.scatter_object_list([None], messages, src=0, group=group)


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def follow(make: Callable[[], Any]) -> bool:
    """Where torchrun started this process as a rank above 0: do what rank 0 asks of the rank that `make` makes, until
    it ends, and return True. Else return False at once.

    Ctrl-C and SIGTERM are for rank 0 to act on: it may need this rank to write a checkpoint.
    """
    number, _ = rank_and_size()
    if number == 0:
        return False
    commands, background = _join()
    for heard in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(heard, signal.SIG_IGN)
    rank = make()
    beside = threading.Thread(target=_serve, args=(number, rank, background), daemon=True)
    beside.start()
    _serve(number, rank, commands)
    beside.join()
    dist.destroy_process_group()
    return True


def _serve(number: int, rank: Any, group: dist.ProcessGroup) -> None:
    try:
        while (message := _next_message(group)) is not None:
            method, own, shared = message
            dist.gather_object(attempt(rank, method, own, shared), None, dst=0, group=group)
    except RuntimeError as error:
        print_line(f"error: rank {number} of the learner: {type(error).__name__}: {first_line(error)}", sys.stderr)
        os._exit(1)  # torchrun ends the others; a group that is broken may wait for them in its destructor


def _next_message(commands: dist.ProcessGroup) -> Any:
    message: list[Any] = [None]
    dist.scatter_object_list(message, None, src=0, group=commands)
    return message[0]


@contextmanager
def torch_ranks(make: Callable[[], Any]) -> Iterator[TorchRanks | None]:
    """The ranks that torchrun started, for rank 0; None where this process is alone. The followers end with the
    block."""
    if rank_and_size()[1] == 1:
        yield None
        return
    commands, background = _join()
    ranks = TorchRanks(make(), commands, background)
    try:
        ranks.check()
        yield ranks
    finally:
        ranks.close()


def _join() -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The groups of commands and of what is done in the background."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    commands, background = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
    return commands, background
