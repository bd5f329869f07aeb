"""New weights to the workers of one vLLM without a file, through vLLM's own weight transfer.

By NCCL to GPUs that the learner does not use, by CUDA IPC to the learner's own. Knows
`vllm.distributed.weight_transfer`, which is installed beside arpo then; how a vLLM is called, the maker of a sender
knows. Each vLLM has a sender, so that the loss of one disturbs no other. A transfer that breaks leaves weights that may
be half old, half new.
"""

import asyncio
import base64
import pickle
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import torch

from arpo.engines.vllm.transport import WeightSnapshot
from arpo.errors import ArpoError, first_line

Backend = Literal["nccl", "ipc"]
Call = Callable[..., Coroutine[Any, Any, None]]
LOOPBACK = "127.0.0.1"
TRANSFER_S = 300.0  # that a server may take over new weights before it counts as lost
IPC_BUFFER = 1 << 30  # bytes that the learner shares at least; a tensor is sent whole


class TransferError(Exception):
    """The workers did not get the weights, or only some of them."""


class SnapshotSource:
    """vLLM's `WeightSource` over a snapshot: names, types and shapes without a copy, then one whole tensor at a time.
    The ranks of a sharded learner iterate it together, since a shard is gathered as its turn comes."""

    def __init__(self, snapshot: WeightSnapshot) -> None:
        self.snapshot = snapshot

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, dtype, tuple(value.shape)) for name, value, dtype in self._shapes()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        from vllm.distributed.weight_transfer.base import materialize_full_tensor

        with torch.no_grad():
            for name, value, dtype in self._parts():
                yield name, materialize_full_tensor(value.detach()).to(self.snapshot.device, dtype).contiguous()

    def _shapes(self) -> Iterator[tuple[str, torch.Tensor, torch.dtype]]:
        return self._parts() if self.snapshot.shapes is None else self.snapshot.shapes()

    def _parts(self) -> Iterator[tuple[str, torch.Tensor, torch.dtype]]:
        assert self.snapshot.parts is not None
        return self.snapshot.parts()


class SyncClient:
    """vLLM's `VLLMWeightSyncClient` over `call`, `await call(route, **arguments)`, which runs on the event loop `loop`
    while vLLM's sending thread waits. failed: hears of an error at once, when that thread may still wait for the
    workers."""

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop, failed: Callable[[Exception], None]) -> None:
        self.call, self.loop, self.failed = call, loop, failed
        self._waiting: set[Future[None]] = set()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._wait("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._wait("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._wait("update_weights", update_info=_as_json(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._wait("finish_weight_update")  # the engine names the version when it writes again

    def cancel(self) -> None:
        for waiting in list(self._waiting):
            waiting.cancel()

    def _wait(self, route: str, **arguments: Any) -> None:
        future = asyncio.run_coroutine_threadsafe(self.call(route, **arguments), self.loop)
        self._waiting.add(future)
        try:
            future.result()
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self._waiting.discard(future)


class WeightSender:
    """call: calls a route of vLLM's weight transfer, on the loop of `send`. num_workers: counts the processes that hold
    a part of the model. host: this machine's address, as the workers see it. transfer_s: how long one transfer may
    take."""

    def __init__(
        self,
        backend: Backend,
        call: Call,
        num_workers: Callable[[], Awaitable[int]],
        *,
        host: str = LOOPBACK,
        transfer_s: float = TRANSFER_S,
    ) -> None:
        self.backend, self.call, self.num_workers = backend, call, num_workers
        self.host, self.transfer_s = host, transfer_s
        self._engine: Any = None  # vLLM's trainer engine, once it has met the workers
        self._client: SyncClient | None = None
        self._source: SnapshotSource | None = None
        self._at_work: asyncio.Future[Any] | None = None
        self._sending = asyncio.Lock()

    async def join(self, snapshot: WeightSnapshot) -> None:
        """Meet the workers now, which the first transfer would do: what stands in the way is said at the start."""
        await self._in_time(partial(self._join, snapshot))

    async def send(self, snapshot: WeightSnapshot) -> None:
        """Have every worker load `snapshot`. Raises TransferError, after `transfer_s` at the latest, and ArpoError
        where vLLM refuses; the next call meets the workers anew."""
        await self._in_time(partial(self._send, snapshot))

    def close(self) -> None:
        """Leave the workers; a transfer under way fails."""
        self._fail(TransferError("the transfer was broken off"))
        if self._client is not None:
            self._client.cancel()
        engine, self._engine, self._client = self._engine, None, None
        if engine is not None:
            threading.Thread(
                target=engine.shutdown, name="arpo-weights-end", daemon=True
            ).start()  # NCCL may wait for seconds

    async def _in_time(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._sending:
            try:
                async with asyncio.timeout(self.transfer_s):
                    await work()
            except TimeoutError:
                self.close()
                raise TransferError(f"the workers took longer than {self.transfer_s:g} s") from None
            except (TransferError, ArpoError, asyncio.CancelledError):
                self.close()
                raise
            except Exception as error:  # vLLM's and torch's own, of a thread
                self.close()
                raise TransferError(first_line(error)) from error

    async def _send(self, snapshot: WeightSnapshot) -> None:
        await self._join(snapshot)
        assert self._source is not None
        self._source.snapshot = snapshot
        await self._in_thread(self._engine.send_weights, snapshot.device)

    async def _join(self, snapshot: WeightSnapshot) -> None:
        if self._engine is not None:
            return
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        loop = asyncio.get_running_loop()
        self._source = SnapshotSource(snapshot)

        def failed(error: Exception) -> None:
            loop.call_soon_threadsafe(self._fail, error)

        self._client = SyncClient(self.call, loop, failed)
        info = init_info(self.backend, self.host, await self.num_workers(), self._source)
        meet = partial(WeightTransferTrainerFactory.trainer_init, info, client=self._client, source=self._source)
        self._engine = await self._in_thread(meet, snapshot.device)

    def _fail(self, error: Exception) -> None:
        if self._at_work is not None and not self._at_work.done():
            self._at_work.set_exception(error)

    async def _in_thread(self, work: Callable[[], Any], device: torch.device | None) -> Any:
        """`work` in a thread that the interpreter does not wait for: one that waits for a lost worker may never end."""
        loop = asyncio.get_running_loop()
        future = self._at_work = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        def run() -> None:
            result, failed = None, None
            try:
                if device is not None and device.type == "cuda":
                    torch.cuda.set_device(device)  # which vLLM sends from
                result = work()
            except Exception as error:  # noqa: BLE001 - vLLM, torch and NCCL raise anything
                failed = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, failed)

        threading.Thread(target=run, name="arpo-weights", daemon=True).start()
        return await future


def init_info(backend: Backend, host: str, num_workers: int, source: SnapshotSource) -> Any:
    """What vLLM's trainer engine is made from."""
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        largest = max(meta.dtype.itemsize * torch.Size(meta.shape).numel() for meta in source.metadata())
        return IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(IPC_BUFFER, largest))
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(rank=0, master_address=host, master_port=_free_port(host), world_size=1 + num_workers)


def _as_json(update_info: Any) -> Any:
    """`update_info` as it goes over HTTP: vLLM takes CUDA's handles pickled, where VLLM_ALLOW_INSECURE_SERIALIZATION is
    set."""
    if not isinstance(update_info, dict) or update_info.get("ipc_handles") is None:
        return update_info
    handles = base64.b64encode(pickle.dumps(update_info["ipc_handles"])).decode()
    return {name: value for name, value in update_info.items() if name != "ipc_handles"} | {
        "ipc_handles_pickled": handles
    }


def address_towards(url: str) -> str:
    """This machine's address as the host of `url` sees it, behind no address translation."""
    parts = urlsplit(url)
    family, _, _, _, target = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0)) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        raise TransferError(f"nobody can be met at {host}: {error.strerror}") from error
