"""The engine `vllm`: what both ways of running it share.

A thread with an event loop of its own talks to vLLM, so that nothing which happens on the caller's loop (or to it)
holds up or breaks a request. Knows turns, stops, weights and when to start; how vLLM is reached, a `Transport` knows.
"""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.base import EngineBase, check_request
from arpo.engines.config import EngineConfig
from arpo.engines.stats import EngineStats
from arpo.engines.stops import Pieces, pieces
from arpo.engines.vllm.adapters import AdapterError, base_folder, served_rank
from arpo.engines.vllm.chunk_assembler import ChunkAssembler
from arpo.engines.vllm.config import VllmConfig
from arpo.engines.vllm.publisher import Publisher
from arpo.engines.vllm.transport import Transport, WeightSnapshot
from arpo.errors import EngineError
from arpo.files import expanded
from arpo.terminal_safe import print_line

MERGED = "vLLM gets all weights, adapters merged, since it cannot serve the adapters alone: {}"
T = TypeVar("T")
Put = Callable[[Chunk | Exception], None]


class VllmEngine(EngineBase):
    """Samples through `form`. publisher: writes weights for it. state: what it begins with, unless it gets others.
    base: the folder of the weights that the policy's adapters add to; None: new weights are whole, adapters merged.
    vocab_size: tokens of the model. context: tokens of a prompt and its turn at most. spell: bytes of a token, needed
    for stop strings."""

    stats: EngineStats

    def __init__(
        self,
        form: Transport,
        publisher: Publisher,
        state: Any,
        *,
        vocab_size: int,
        context: int,
        spell: Pieces | None = None,
        base: Path | None = None,
    ) -> None:
        self.form, self.publisher, self.state, self.base = form, publisher, state, base
        self.vocab_size, self.context, self.spell = vocab_size, context, spell
        self.stats = EngineStats()
        self.version = 0
        self._writing: dict[
            asyncio.Task[None], Put
        ] = {}  # the requests in flight; touched on the loop of the thread alone
        self._loading = asyncio.Lock()
        self._loaded = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def build(
        cls, config: EngineConfig, model: Any, tokenizer: Any, state: Any = None, launch: Any = None
    ) -> "VllmEngine":
        """The engine that a recipe describes, on the learner's transformers or PEFT model. state: its weights (None:
        its own, as they are). launch: starts servers elsewhere (`arpo.cluster.servers:RayServers`). Raises ConfigError
        where vLLM is not there or does not fit; it is started by the first request."""
        import torch

        from arpo.engines.vllm.settings import Settings

        vllm = config.vllm or VllmConfig()
        lora_rank, base = None, None
        on_gpu = torch.cuda.is_available() if launch is None else bool(launch.gpus)
        alone = vllm.lora == "adapters" or (vllm.lora == "auto" and on_gpu)
        if alone and hasattr(model, "peft_config"):
            try:
                lora_rank, base = served_rank(model), base_folder(model)
            except AdapterError as error:
                _say(MERGED.format(error.message))
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        settings = Settings.of(config, plain, tokenizes=tokenizer is not None, lora_rank=lora_rank, on_gpu=on_gpu)
        publisher = Publisher(
            plain,
            tokenizer,
            dtype=settings.dtype,
            folder=expanded(vllm.weights) if "/" in vllm.weights else launch and launch.weights,
            unties=settings.unties,
            offers=bool(vllm.transfer),
        )
        return cls(
            settings.form(tell=_say, launch=launch),
            publisher,
            model.state_dict() if state is None else state,
            base=base,
            vocab_size=settings.vocab_size,
            context=settings.context,
            spell=pieces(tokenizer) if tokenizer is not None else None,
        )

    @property
    def live(self) -> int:
        """Requests in flight."""
        return len(self._writing)

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """Sample one turn. The first chunk comes as soon as `params.head` tokens exist, the last has `finish`."""
        self._check_open()
        check_request(prompt, params, self.context)
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise EngineError(
                f"the prompt has a token that is none of the model's {self.vocab_size}"
            )  # vLLM would die of it
        if params.stop and self.spell is None:
            raise EngineError("stop strings need a tokenizer")
        here = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

        def put(item: Chunk | Exception) -> None:
            if not here.is_closed():
                here.call_soon_threadsafe(queue.put_nowait, item)

        def end(writing: "Future[None]") -> None:
            """What went wrong on the thread is raised here."""
            if not writing.cancelled() and isinstance(error := writing.exception(), Exception):
                put(error)

        writing = self._run(self._write(list(prompt), params, put))
        writing.add_done_callback(end)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish is not None:
                    return
        finally:
            writing.cancel()  # one that has ended does not mind

    async def start(self) -> None:
        """Start vLLM now, which the first request would do. Raises ConfigError."""
        self._check_open()
        await self._on_thread(self._start())

    async def update_weights(self, weights: Weights) -> None:
        """Use `weights` from now on. Requests in flight go on with them, and read their context anew."""
        self._check_open()
        await self._on_thread(self._update_weights(weights))

    async def sleep(self) -> None:
        """Give memory back until the next request, where vLLM was told to (`sleep`); with requests in flight nothing
        happens."""
        if self._loaded and not self._closed:
            await self._on_thread(self._sleep())

    async def close(self) -> None:
        """End every request with EngineError, and vLLM with them. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            try:
                await self._on_thread(self._end())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                await asyncio.to_thread(self._thread.join)  # type: ignore[union-attr]
        self.publisher.close()

    # -- on the thread
    # ----------------------------------------------------------------------------------------------------

    async def _write(self, prompt: list[int], params: SamplingParams, put: Put) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._writing[task] = put
        self.stats.requests += 1
        try:
            await self._start()
            await self._turn(prompt, params, put)
        except asyncio.CancelledError:
            self.stats.cancelled += 1
            raise
        except EngineError:
            self.stats.failures += 1
            raise
        finally:
            self._writing.pop(task, None)

    async def _turn(self, prompt: list[int], params: SamplingParams, put: Put) -> None:
        cutter = ChunkAssembler(params, self.spell)
        counted = False
        async with aclosing(self.form.stream(prompt, params)) as stream:
            async for piece in stream:
                if piece.cached is not None and not counted:
                    counted = True
                    self.stats.reused_tokens += piece.cached
                    self.stats.prefill_tokens += len(prompt) - piece.cached
                for chunk in cutter.feed(piece):
                    self.stats.decode_tokens += len(chunk.tokens)
                    put(chunk)
                if cutter.finished:
                    return
        raise EngineError("vLLM's answer broke off")

    async def _start(self) -> None:
        """Hand the model's own weights over, unless others were before."""
        if not self._loaded:
            async with self._loading:
                if not self._loaded:
                    await self._publish(self.state, 0)

    async def _update_weights(self, weights: Weights) -> None:
        async with self._loading:
            published = await self._publish(weights.state, weights.version)
            if weights.changing:
                await self.publisher.keep(published)  # a server that comes back needs them as they are now

    async def _publish(self, state: Any, version: int) -> WeightSnapshot:
        self.state = None  # it begins with these
        if self.base is not None and hasattr(state, "write_adapters"):
            try:
                published = await asyncio.to_thread(self.publisher.adapters, state, version, self.base)
                await self._hand_over(published)
                return published
            except AdapterError as error:
                self.base = None
                _say(MERGED.format(error.message))
        published = await asyncio.to_thread(self.publisher.publish, state, version)
        await self._hand_over(published)
        return published

    async def _hand_over(self, published: WeightSnapshot) -> None:
        began = time.perf_counter()
        await self.form.update_weights(published)
        self.publisher.keep_only(published)
        self.version, self._loaded = published.version, True
        self.stats.load_s += time.perf_counter() - began

    async def _sleep(self) -> None:
        async with self._loading:
            if not self._writing:
                await self.form.sleep()

    async def _end(self) -> None:
        for task, put in list(self._writing.items()):
            put(EngineError("the engine was closed"))
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)
        await self.form.close()

    # -- the thread
    # -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")

    def _run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="arpo-vllm", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _on_thread(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._run(work))


def _say(text: str) -> None:
    print_line(text, sys.stderr)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
