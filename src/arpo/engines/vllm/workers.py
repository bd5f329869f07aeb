"""Runs in vLLM's workers: takes new weights from the learner without a file, through a collective or memory that both see.

Needs torch alone beside vLLM's worker: where arpo is not installed, this one file is put beside the server. Both ends cut the
stream of tensors by `chunks`, and make their process group by `join`. What says where shared memory lies comes over HTTP, so it
is numbers and text, and nothing is unpickled.
"""

import functools
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

ALIGNED = 16  # bytes: so that every tensor of a chunk can be seen as its own type
CHUNK = 64 << 20  # bytes of small tensors that are sent together; a larger tensor is sent alone
Cut = tuple[str, str, Sequence[int], int, int]  # name, dtype, shape, and where in a chunk it starts and ends, in bytes


def join(
    host: str,
    port: int,
    rank: int,
    size: int,
    backend: str,
    timeout_s: float,
    device: torch.device,
    listener: Any = None,
) -> Any:
    """A process group beside torch's own ones, of `size` processes that meet at the learner (rank 0), whose socket at `host` and
    `port` is `listener` there. Raises what torch raises, after `timeout_s` at the latest. Returns the group and where it met."""
    timeout = timedelta(seconds=timeout_s)
    more: dict[str, Any] = {} if listener is None else {"master_listen_fd": listener, "use_libuv": True}
    meeting = distributed.TCPStore(host, port, is_master=listener is not None, timeout=timeout, wait_for_workers=False, **more)
    if backend != "nccl":
        make: Any = distributed.ProcessGroupGloo
        options = make._Options()
        local = host == "127.0.0.1"
        options._devices = [make.create_device(hostname=host) if local else make.create_default_device()]
        options._timeout = timeout
        return make(meeting, rank, size, options), meeting
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    torch.cuda.set_device(device)
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # by default, a peer that is lost ends this process too
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        return distributed.ProcessGroupNCCL(meeting, rank, size, options), meeting
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def broadcast(group: Any, buffer: torch.Tensor, timeout_s: float) -> None:
    """Fill `buffer` (uint8, on the group's device) with that of rank 0."""
    options = distributed.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    options.timeout = timedelta(seconds=timeout_s)
    group.broadcast([buffer], options).wait(timedelta(seconds=timeout_s))


def barrier(group: Any, timeout_s: float) -> None:
    """Until every process is here."""
    options = distributed.BarrierOptions()
    options.timeout = timedelta(seconds=timeout_s)
    group.barrier(options).wait(timedelta(seconds=timeout_s))


def place(device: torch.device) -> dict[str, Any]:
    """Where a tensor of this process on `device` lies. Processes with the same `memory` (this user's, of one machine, unless
    containers part them; None: not known) can open what the other shares of the same `device`."""
    cuda = device.type == "cuda"
    where = str(torch.cuda.get_device_properties(device).uuid) if cuda else device.type
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            memory = [boot.read().strip(), os.getuid(), os.readlink("/proc/self/ns/pid"), os.stat("/dev/shm").st_dev]
    except OSError:
        memory = None
    return {"cuda": cuda, "device": where, "memory": memory}


@contextmanager
def shared(size: int, device: torch.device) -> Iterator[tuple[torch.Tensor, list[Any]]]:
    """A buffer of `size` bytes, and what `opened` needs to have it in another process while this context lasts."""
    if device.type == "cuda":
        buffer = torch.empty(size, dtype=torch.uint8, device=device)
        handles = reduce_tensor(buffer)[1][HANDLES:]
        yield buffer, [each.hex() if isinstance(each, bytes) else each for each in handles]
        return
    file = os.memfd_create("arpo-weights")  # of no file system, whose room might be short
    try:
        os.truncate(file, size)
        yield torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8), [os.getpid(), file]
    finally:
        os.close(file)


HANDLES = 7  # where in the arguments of torch's `rebuild_cuda_tensor` those begin that say where memory lies


def opened(size: int, device: torch.device, handles: Sequence[Any]) -> torch.Tensor:
    """The buffer that another process shares."""
    if device.type == "cuda":
        plain = [bytes.fromhex(each) if isinstance(each, str) else each for each in handles]
        whole = (torch.Tensor, (size,), (1,), 0, torch.storage.TypedStorage, torch.uint8, device.index)
        return rebuild_cuda_tensor(*whole, *plain)  # type: ignore[no-any-return, no-untyped-call]
    process, number = map(int, handles)
    with open(f"/proc/{process}/fd/{number}", "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def settle(device: torch.device) -> None:
    """Until what was asked of the device is done, so that another process sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def chunks(manifest: Sequence[Any]) -> Iterator[tuple[list[Cut], int]]:
    """Cut a manifest, [name, dtype, shape] of each tensor, into what is sent together, and the bytes of the whole."""
    part: list[Cut] = []
    size = 0
    for name, dtype, shape in manifest:
        length = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
        if part and size + length > CHUNK:
            yield part, size
            part, size = [], 0
        part.append((name, dtype, shape, size, size + length))
        size += -(-length // ALIGNED) * ALIGNED
    if part:
        yield part, size


def received(
    group: Any, manifest: Sequence[Any], device: torch.device, timeout_s: float, window: torch.Tensor | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `manifest` by name, as rank 0 sends them: through the group, or through a `window`, a buffer that it shares
    and fills again and again. None is written to again."""
    for part, size in chunks(manifest):
        if window is None:
            buffer = torch.empty(size, dtype=torch.uint8, device=device)
            broadcast(group, buffer, timeout_s)
        else:
            barrier(group, timeout_s)  # it is filled
            buffer = window[:size].clone()
            settle(device)
            barrier(group, timeout_s)  # and may be filled again
        for name, dtype, shape, start, end in part:
            yield name, buffer[start:end].view(getattr(torch, dtype)).view(shape)


def telling(method: Callable[..., None]) -> Callable[..., dict[str, str]]:
    """`method`, which returns what went wrong: a server whose route raises closes the connection, and the next request with it."""

    @functools.wraps(method)
    def called(self: Any, **given: Any) -> dict[str, str]:
        try:
            method(self, **given)
        except Exception as error:  # noqa: BLE001 - torch and vLLM's loader raise anything
            return {"error": f"{type(error).__name__}: {error}"}
        return {}

    return called


class Receiver:
    """What vLLM's `worker_extension_cls` adds to every worker; called through `collective_rpc`."""

    arpo_group: Any = None
    parallel_config: Any  # these are the worker's
    device: torch.device
    reload_weights: Any

    def arpo_place(self) -> dict[str, Any]:
        """Processes that this vLLM has in all, and the device of this one."""
        parallel = self.parallel_config
        return {"workers": parallel.data_parallel_size * parallel.world_size, **place(self.device)}

    @telling
    def arpo_open(self, handles: Sequence[Any], content: int) -> None:
        """Whether a byte that the learner shares can be read here: not every platform can."""
        if int(opened(1, self.device, handles)[0]) != content:
            raise RuntimeError("another process's memory reads otherwise here")

    @telling
    def arpo_join(self, host: str, port: int, size: int, backend: str, timeout_s: float) -> None:
        """Meet the learner."""
        self.arpo_leave()
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        group, meeting = join(host, port, rank, size, backend, timeout_s, self.device)
        self.arpo_group = group, meeting, self.device if backend != "gloo" else torch.device("cpu"), timeout_s

    @telling
    def arpo_receive(self, manifest: Sequence[Any], size: int = 0, handles: Sequence[Any] = ()) -> None:
        """Load what the learner sends, through a buffer of `size` bytes that it shares where it gives its handles. After an error
        the weights may be half old, half new, and the group is gone."""
        if self.arpo_group is None:
            raise RuntimeError("this worker has not met the learner")
        group, _, device, timeout_s = self.arpo_group
        try:
            tensors = received(group, manifest, device, timeout_s, opened(size, device, handles) if handles else None)
            self.reload_weights(weights_iterator=tensors)
            for _ in tensors:  # what this worker has no use for
                pass
        except BaseException:
            self.arpo_leave()
            raise

    def arpo_leave(self) -> None:
        """Close the group, which the learner notices at once."""
        group, self.arpo_group = self.arpo_group, None
        if group is not None:
            group[0].abort()
