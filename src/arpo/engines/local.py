"""The embedded engine: torch in this process, all live requests in one batch.

One thread computes; the event loop only passes requests in and chunks out, so that tools and other tasks never wait for a
forward pass. Knows asyncio and threads; what a step is, `decoder` knows.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.config import Dtype, EngineConfig, has_fast_bf16
from arpo.engines.decoder import Decoder, Reply, Request
from arpo.engines.exact import ExactDecoder
from arpo.engines.network import Network
from arpo.engines.slots import Slots
from arpo.engines.stats import EngineStats
from arpo.engines.stops import pieces
from arpo.errors import ConfigError, EngineError


class LocalEngine:
    """Samples from a Hugging Face causal LM with full attention.

    model: its parameters are shared where they are used as they are (float32 on the same device), else copied; call `load`
    after changing them. tokenizer: needed for stop strings only. slots: turns sampled at once. max_tokens_per_slot: longest
    context with its turn (default: the model's). memory_gb: bound for keys and values. prefill: prompt tokens a step, so that a
    long prompt does not stop the others. device: where to compute (default: the model's). deterministic: results do not depend
    on timing; float32 and slow.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        slots: int = 64,
        max_tokens_per_slot: int | None = None,
        memory_gb: float = 4.0,
        dtype: Dtype | torch.dtype = "auto",
        deterministic: bool = False,
        device: str | torch.device | None = None,
        prefill: int = 256,
    ) -> None:
        place = torch.device(device) if device is not None else next(model.parameters()).device
        kind = _dtype(dtype, place, deterministic)
        self.stats = EngineStats()
        self.deterministic = deterministic
        network = Network(model, dtype=kind, device=place, max_tokens=max_tokens_per_slot)
        store = Slots(
            network.shape,
            dtype=kind,
            device=place,
            memory=int(memory_gb * 2**30),
            most=1 << 20 if deterministic else 2 * slots,
            evicts=not deterministic,
        )
        spell = pieces(tokenizer) if tokenizer is not None else None
        make = ExactDecoder if deterministic else Decoder
        self._decoder = make(network, store, spell, live=slots, prefill=prefill, stats=self.stats)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arpo-engine")
        self._jobs = _Jobs()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._broken = False  # the event loop went away in the middle of a step

    @classmethod
    def build(cls, config: EngineConfig, model: Any, tokenizer: Any) -> "LocalEngine":
        """The engine that a recipe describes."""
        return cls(
            model,
            tokenizer,
            slots=config.slots,
            max_tokens_per_slot=config.max_tokens_per_slot,
            memory_gb=config.memory_gb,
            dtype=config.dtype,
            deterministic=config.deterministic,
        )

    @property
    def version(self) -> int:
        return self._decoder.version

    @property
    def context(self) -> int:
        """Tokens of a prompt and its turn at most: what the model can read, and the memory hold."""
        return min(self._decoder.network.limit, self._decoder.slots.longest())

    @property
    def dtype(self) -> torch.dtype:
        """What the engine computes in."""
        return self._decoder.network.dtype

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """Sample one turn. The first chunk comes as soon as `params.head` tokens exist, the last has `finish`."""
        if self._closed:
            raise EngineError("the engine is closed")
        request = self._decoder.request(prompt, params)
        queue: asyncio.Queue[Chunk | EngineError] = asyncio.Queue()
        self._jobs.queues[request] = queue
        self._jobs.arrivals.append(request)
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
            if self._jobs.queues.pop(request, None) is not None:
                self._jobs.closed.append(request)  # the scheduler is running as long as the request is live

    async def load(self, weights: Weights) -> None:
        """Use `weights` from the next step on. Requests in flight keep their keys; prefixes computed before are dropped."""
        if self._closed:
            raise EngineError("the engine is closed")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.loads.append((weights, done))
        self._wake()
        await done

    async def rest(self) -> None:
        """Give the memory of keys and values back until the next request; with requests in flight nothing happens."""
        if not self._jobs.queues and self._task is not None and not self._task.done():
            await asyncio.wait({self._task})  # requests that were cancelled have yet to leave their slots
        if not self._jobs.queues:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._decoder.slots.release)

    async def forget(self) -> None:
        """Drop all known prefixes, for example between evaluations with a deterministic engine, which never evicts one."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._decoder.slots.forget)

    async def close(self) -> None:
        """End every request with EngineError and free the memory. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task})
        self._fail([*self._decoder.reset(), *self._jobs.arrivals], EngineError("the engine was closed"))
        for _, done in self._jobs.loads:
            if not done.done():
                done.set_exception(EngineError("the engine was closed"))
        self._pool.shutdown(wait=True)

    # -- the scheduler ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="arpo-engine")

    async def _run(self) -> None:
        """Step while there is something to do, then end: an idle engine has no task and works in any event loop."""
        jobs = self._jobs
        if self._broken:
            await self._compute(self._decoder.reset)
            self._broken = False
        while not self._closed and (jobs.arrivals or jobs.closed or jobs.loads or self._decoder.busy):
            while jobs.loads:
                await self._load(*jobs.loads.pop(0))
            arrivals, closed = jobs.take()
            replies, error = await self._compute(self._decoder.step, arrivals, closed)
            if error is None:
                self._deliver(replies)
            else:
                self.stats.failures += 1
                lost = {*self._decoder.reset(), *arrivals}
                self._fail(list(lost), EngineError(f"the model failed: {type(error).__name__}: {error}"), error)
            await asyncio.sleep(0)  # let those who got a chunk ask for more before the next step

    async def _load(self, weights: Weights, done: "asyncio.Future[None]") -> None:
        replies, error = await self._compute(self._decoder.load, weights)
        if error is None:
            self._deliver(replies)
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    async def _compute(self, job: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
        """Run `job` in the thread that computes: its result, or the error that it raised."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, job, *arguments)
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            self._broken = True
            raise
        error = future.exception()
        return (None if error is not None else future.result()), error

    def _deliver(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            if reply.chunk is None:
                self._fail([reply.request], EngineError(reply.error))
                continue
            finished = reply.chunk.finish is not None
            queue = self._jobs.queues.pop(reply.request, None) if finished else self._jobs.queues.get(reply.request)
            if queue is not None:
                queue.put_nowait(reply.chunk)

    def _fail(self, requests: Sequence[Request], error: EngineError, cause: BaseException | None = None) -> None:
        for request in requests:
            queue = self._jobs.queues.pop(request, None)
            if queue is not None:
                own = EngineError(*error.args)  # one a request: a shared exception would collect everybody's traceback
                own.__cause__ = cause
                queue.put_nowait(own)


@dataclass(slots=True)
class _Jobs:
    """What waits for the next step."""

    arrivals: list[Request] = field(default_factory=list)
    closed: list[Request] = field(default_factory=list)
    loads: list[tuple[Weights, "asyncio.Future[None]"]] = field(default_factory=list)
    queues: dict[Request, "asyncio.Queue[Chunk | EngineError]"] = field(default_factory=dict)

    def take(self) -> tuple[list[Request], list[Request]]:
        """Arrivals and closed requests since the last step; who came and went in between does not show."""
        gone = set(self.closed)
        taken = [r for r in self.arrivals if r not in gone], list(self.closed)
        self.arrivals.clear()
        self.closed.clear()
        return taken


def _dtype(dtype: Dtype | torch.dtype, device: torch.device, deterministic: bool) -> torch.dtype:
    if isinstance(dtype, str) and dtype == "auto":
        fast = has_fast_bf16() if device.type == "cpu" else device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast and not deterministic else torch.float32
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if deterministic and found != torch.float32:
        raise ConfigError("a deterministic engine computes in float32", where="engine.dtype", value=str(dtype), hint="use 'auto'")
    return found
