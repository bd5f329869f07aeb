"""One lane of the local engine: a decoder, the thread that computes its steps, and the requests that wait for it.

The event loop only passes requests in and chunks out, so that tools and other tasks never wait for a forward pass.
Knows asyncio and threads; what a step is, `decoder` knows. Refuses to know other lanes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from arpo.engines import Chunk, SamplingParams
from arpo.engines.decoder import Decoder, DecodeReply, DecodeRequest
from arpo.errors import EngineError


class Lane:
    """Runs `decoder` in a thread of its own, on `threads` of torch's threads."""

    def __init__(self, decoder: Decoder, *, threads: int) -> None:
        self.decoder = decoder
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arpo-engine")
        default = torch.get_num_threads()
        self._pool.submit(_use_threads, threads).result()
        torch.set_num_threads(
            default
        )  # the number is one's own, but also becomes that of threads that are started later
        self._queues: dict[DecodeRequest, asyncio.Queue[Chunk | EngineError]] = {}
        self._waiting = _Waiting()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._broken = False  # the event loop went away in the middle of a step

    @property
    def num_requests(self) -> int:
        return len(self._queues)

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """Sample one turn. The first chunk comes as soon as `params.head` tokens exist, the last has `finish`."""
        request = self.decoder.request(prompt, params)
        queue: asyncio.Queue[Chunk | EngineError] = asyncio.Queue()
        self._queues[request] = queue
        self._waiting.arrivals.append(request)
        self._wake()
        try:
            while True:
                item = await queue.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish is not None:
                    return
        finally:
            if self._queues.pop(request, None) is not None:
                self._waiting.closed.append(request)  # the scheduler is running as long as the request is live

    async def hold(self) -> "asyncio.Future[None]":
        """Wait until no step is under way. The next one begins when the future that this returns is done."""
        hold = _Hold()
        self._waiting.holds.append(hold)
        self._wake()
        try:
            await hold.standing
        except asyncio.CancelledError:
            hold.release.cancel()
            raise
        return hold.release

    async def compute(self, job: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
        """Run `job` in the thread that computes: its result, or the error that it raised."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, job, *arguments)
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            self._broken = True
            raise
        error = future.exception()
        return (None if error is not None else future.result()), error

    async def sleep(self) -> None:
        """Give the memory of keys and values back until the next request; with requests in flight nothing happens."""
        if not self._queues and self._task is not None and not self._task.done():
            await asyncio.wait({self._task})  # requests that were cancelled have yet to leave their slots
        if not self._queues:
            await self.compute(self.decoder.slots.release)

    async def close(self) -> None:
        """End every request with EngineError and free the memory."""
        self._closed = True
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task})
        self.fail([*self.decoder.reset(), *self._waiting.arrivals], EngineError("the engine was closed"))
        for hold in self._waiting.holds:
            if not hold.standing.done():
                hold.standing.set_exception(EngineError("the engine was closed"))
        self._pool.shutdown(wait=True)

    def deliver(self, replies: Sequence[DecodeReply]) -> None:
        for reply in replies:
            if reply.chunk is None:
                self.fail([reply.request], EngineError(reply.error))
                continue
            finished = reply.chunk.finish is not None
            queue = self._queues.pop(reply.request, None) if finished else self._queues.get(reply.request)
            if queue is not None:
                queue.put_nowait(reply.chunk)

    def fail(self, requests: Sequence[DecodeRequest], error: EngineError, cause: BaseException | None = None) -> None:
        for request in requests:
            queue = self._queues.pop(request, None)
            if queue is not None:
                own = EngineError(*error.args)  # one a request: a shared exception would collect everybody's traceback
                own.__cause__ = cause
                queue.put_nowait(own)

    # -- the scheduler
    # ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="arpo-engine")

    async def _run(self) -> None:
        """Step while there is something to do, then end: an idle lane has no task and works in any event loop."""
        waiting = self._waiting
        if self._broken:
            await self.compute(self.decoder.reset)
            self._broken = False
        while not self._closed and (waiting.arrivals or waiting.closed or waiting.holds or self.decoder.busy):
            while waiting.holds:
                await waiting.holds.pop(0).stand()
            arrivals, closed = waiting.take()
            replies, error = await self.compute(self.decoder.step, arrivals, closed)
            if error is None:
                self.deliver(replies)
            else:
                self.decoder.stats.failures += 1
                lost = {*self.decoder.reset(), *arrivals}
                self.fail(list(lost), EngineError(f"the model failed: {type(error).__name__}: {error}"), error)
            await asyncio.sleep(0)  # let those who got a chunk ask for more before the next step


def _use_threads(count: int) -> None:
    """Of the calling thread. torch gives a thread the default number when it first looks, so it has to look before."""
    torch.get_num_threads()
    torch.set_num_threads(count)


class _Hold:
    """Somebody who needs the lane to stand still."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.standing: asyncio.Future[None] = loop.create_future()
        self.release: asyncio.Future[None] = loop.create_future()

    async def stand(self) -> None:
        if not self.standing.done():
            self.standing.set_result(None)
        await asyncio.wait({self.release})


@dataclass(slots=True)
class _Waiting:
    """What waits for the next step."""

    arrivals: list[DecodeRequest] = field(default_factory=list)
    closed: list[DecodeRequest] = field(default_factory=list)
    holds: list[_Hold] = field(default_factory=list)

    def take(self) -> tuple[list[DecodeRequest], list[DecodeRequest]]:
        """Arrivals and closed requests since the last step; who came and went in between does not show."""
        gone = set(self.closed)
        taken = [r for r in self.arrivals if r not in gone], list(self.closed)
        self.arrivals.clear()
        self.closed.clear()
        return taken
