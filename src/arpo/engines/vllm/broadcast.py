"""The learner's end of what new weights go through to the workers of one vLLM without a file.

Each vLLM has a process group of its own, with the learner as rank 0, so that the loss of one disturbs no other. They go over NCCL
where every worker has a GPU that the learner does not use; through memory that both see where all use the learner's own device,
its one GPU or the main memory of its machine; else over gloo. Knows torch's process groups; how a worker's method is called, its
maker knows. `workers.py` is the other end.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed
from torch import Tensor

from arpo.engines.vllm.transport import WeightSnapshot
from arpo.engines.vllm.workers import barrier, broadcast, chunks, join, place, settle, shared
from arpo.errors import first_line

Call = Callable[..., Awaitable[Sequence[Any]]]
LOOPBACK = "127.0.0.1"
CPU = torch.device("cpu")
CONTENT = 77  # of a byte that is shared to see whether it can be
TELL_S = 3.0  # for the workers to say what went wrong, where this end only sees that it did


class LinkError(Exception):
    """The workers did not get the weights, or only some of them."""


class WeightBroadcast:
    """call: runs a method of every worker, `await call(name, **arguments)`, and gives what each returned. host: this machine's
    address, as the workers know it. transfer_s: how long one transfer may take."""

    def __init__(self, call: Call, *, host: str = LOOPBACK, transfer_s: float) -> None:
        self.call, self.host, self.transfer_s = call, host, transfer_s
        self.backend = ""
        self._group: Any = None
        self._meeting: Any = None
        self._device = CPU
        self._sending = asyncio.Lock()
        self._broken = asyncio.Event()

    async def send(self, published: WeightSnapshot) -> None:
        """Have every worker load `published`, joining them first where that has not happened. Raises LinkError, after `transfer_s`
        at the latest; the next call joins them anew."""
        await self._in_time(partial(self._deliver, published))

    async def meet(self, published: WeightSnapshot) -> None:
        """Join the workers now, which the first transfer would do: what stands in the way is said at the start."""
        await self._in_time(partial(self._join, published.device))

    async def _in_time(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._sending:
            self._broken.clear()
            try:
                async with asyncio.timeout(self.transfer_s):
                    await work()
            except TimeoutError:
                self.close()
                raise LinkError(f"the workers took longer than {self.transfer_s:g} s (engine.vllm.transfer_s)") from None
            except (LinkError, asyncio.CancelledError):
                self.close()
                raise

    def close(self) -> None:
        """Close the group; a transfer under way fails."""
        self._broken.set()
        self._leave()

    def _leave(self) -> None:
        group, self._group, self._meeting = self._group, None, None
        if group is not None:
            with suppress(RuntimeError):  # the other end is gone
                group.abort()

    async def _deliver(self, published: WeightSnapshot) -> None:
        if self._group is None or not await self._sent(published):
            await self._join(published.device)
            await self._send(published)

    async def _sent(self, published: WeightSnapshot) -> bool:
        """Whether the group that there is still works: another run may have taken these workers meanwhile, and given them back."""
        try:
            await self._send(published)
        except LinkError:
            if self._broken.is_set():
                raise
            self._leave()
            return False
        return True

    async def _join(self, device: torch.device | None) -> None:
        places = await self._asked(self.call("arpo_place"))
        self.backend = backend_for(device, places)
        if self.backend == "shared" and not await self._can_share(device or CPU):
            self.backend = "gloo"
        self._device = device if device and self.backend != "gloo" else CPU
        size = 1 + int(places[0]["workers"])
        try:
            listening = socket.create_server((self.host, 0))
        except OSError as error:
            raise LinkError(f"nobody can be met at {self.host}: {error.strerror}") from error
        with listening:
            port = int(listening.getsockname()[1])
            meets = {"host": self.host, "port": port, "size": size, "backend": self.backend, "timeout_s": self.transfer_s}
            listener = listening.detach()  # torch closes it
        entering = self.call("arpo_join", **meets)
        made = await self._both(
            entering, lambda: join(self.host, port, 0, size, self.backend, self.transfer_s, self._device, listener)
        )
        self._group, self._meeting = made

    async def _can_share(self, device: torch.device) -> bool:
        """Whether the workers can open this process's memory, as places alike promise."""
        try:
            with shared(1, device) as (buffer, handles):
                buffer.fill_(CONTENT)
                settle(device)
                await self._asked(self.call("arpo_open", handles=handles, content=CONTENT))
        except (LinkError, RuntimeError, OSError):
            return False
        return True

    async def _send(self, published: WeightSnapshot) -> None:
        assert published.parts is not None
        parts = await asyncio.to_thread(lambda: list(published.parts()))  # type: ignore[misc]
        manifest = [[name, str(dtype).removeprefix("torch."), list(value.shape)] for name, value, dtype in parts]
        group = self._group
        most = max(size for _, size in chunks(manifest))
        with shared(most, self._device) if self.backend == "shared" else nullcontext((None, None)) as (window, handles):
            given = {} if window is None else {"size": most, "handles": handles}
            await self._both(
                self.call("arpo_receive", manifest=manifest, **given), lambda: self._give(group, parts, manifest, window)
            )

    def _give(
        self, group: Any, parts: Sequence[tuple[str, Tensor, torch.dtype]], manifest: Sequence[Any], window: Tensor | None
    ) -> None:
        waiting = iter(parts)
        with torch.no_grad():
            for part, size in chunks(manifest):
                buffer = torch.empty(size, dtype=torch.uint8, device=self._device) if window is None else window[:size]
                for (_, dtype, _, start, end), (_, value, _) in zip(part, waiting, strict=False):
                    buffer[start:end].view(getattr(torch, dtype)).copy_(value.detach().reshape(-1))
                if window is None:
                    broadcast(group, buffer, self.transfer_s)
                else:
                    settle(self._device)
                    barrier(group, self.transfer_s)  # the workers may read it
                    barrier(group, self.transfer_s)  # and have

    async def _asked(self, call: Awaitable[Sequence[Any]]) -> Sequence[Any]:
        try:
            said = await call
        except Exception as error:  # whatever the way to the workers raises
            raise LinkError(f"the workers do not answer: {first_line(error)}") from error
        if wrong := next((one["error"] for one in said if one and "error" in one), None):
            raise LinkError(f"a worker failed: {wrong.splitlines()[0]}")
        return said

    async def _both(self, call: Awaitable[Sequence[Any]], work: Callable[[], Any]) -> Any:
        """What `work` gives, in a thread, while the workers do their part. Raises LinkError as soon as one of them fails."""
        asked = asyncio.ensure_future(self._asked(call))
        ours = in_thread(work)
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait({broken, asyncio.ensure_future(_all(asked, ours))}, return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                raise LinkError("the transfer was broken off")
            if ours.done() and ours.exception() is not None:
                await asyncio.wait({asked}, timeout=TELL_S)
            errors = [error for one in (asked, ours) if one.done() and (error := one.exception()) is not None]
            if errors:
                raise errors[0] if isinstance(errors[0], LinkError) else LinkError(first_line(errors[0])) from errors[0]
            return ours.result()
        finally:
            for one in (asked, ours, broken):
                one.cancel()


async def _all(*futures: "asyncio.Future[Any]") -> None:
    """Until all have ended, or one has failed."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)


def backend_for(device: torch.device | None, places: Sequence[Any]) -> str:
    """`shared` where every worker has the learner's `device` and memory, `nccl` where each has a GPU of its own that is not the
    learner's, else `gloo`."""
    ours = place(device or CPU)
    if ours["memory"] and all((each["device"], each["memory"]) == (ours["device"], ours["memory"]) for each in places):
        return "shared"
    if not all(each["cuda"] for each in (ours, *places)) or not torch.distributed.is_nccl_available():
        return "gloo"
    devices = [each["device"] for each in (ours, *places)]
    return "nccl" if len(set(devices)) == len(devices) else "gloo"


def address_towards(url: str) -> str:
    """This machine's address as the host of `url` sees it, behind no address translation."""
    parts = urlsplit(url)
    family, _, _, _, target = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def in_thread(work: Callable[[], Any]) -> "asyncio.Future[Any]":
    """`work` in a thread that the interpreter does not wait for: one that waits for a lost server ends when its time is over."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not future.done():
            future.set_result(result) if error is None else future.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - torch's process groups raise RuntimeError, DistError and others
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="arpo-weights", daemon=True).start()
    return future
