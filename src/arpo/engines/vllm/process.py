"""vLLM inside this process: its asynchronous engine, whose core runs in a child process of its own.

Knows vLLM's Python interface. A core that dies is started again, with the newest weights, by the next request.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np

from arpo.engines import SamplingParams
from arpo.engines.vllm.forms import Piece, Published
from arpo.engines.vllm.link import Link, LinkError
from arpo.errors import ConfigError, EngineError, first_line

if TYPE_CHECKING:
    from arpo.engines.vllm.settings import Settings


class InProcess:
    """A `Form`. Everything runs on one event loop."""

    def __init__(self, settings: "Settings", tell: Callable[[str], None] = lambda text: None) -> None:
        self.settings, self.tell = settings, tell
        self.llm: Any = None
        self.published: Published | None = None
        self._starting = asyncio.Lock()
        self._asleep = False
        self._version = 0
        self._link: Link | None = None

    async def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = await self._awake()
        asked = self._asked(params)
        first = True
        try:
            async with aclosing(llm.generate({"prompt_token_ids": list(prompt)}, asked, uuid.uuid4().hex)) as outputs:
                async for output in outputs:
                    written = output.outputs[0]
                    if written.finish_reason not in (None, "stop", "length"):
                        raise EngineError(f"vLLM ended the request: {written.finish_reason}")
                    yield self._piece(written, output.num_cached_tokens if first else None)
                    first = False
        except EngineDeadError as error:
            raise EngineError("vLLM died; the next request starts it again") from error
        except (asyncio.CancelledError, GeneratorExit, EngineError):
            raise
        except Exception as error:  # vLLM raises whatever its parts raise, and a request must not end a run
            raise EngineError(f"vLLM failed: {first_line(error.__cause__ or error)}") from error

    async def load(self, published: Published) -> None:
        first, self.published = self.published is None, published
        if first:
            await self._awake()
            return
        if self.llm is None or self.llm.errored:
            return  # the next request starts it with these
        await self._wake()
        await self.llm.pause_generation(mode="keep", clear_cache=False)
        try:
            await self._hand_over(published)
            await self.llm.reset_prefix_cache(reset_running_requests=True)
            await self.llm.update_weight_version(published.label)
            self._version = published.version
        finally:
            await self.llm.resume_generation()

    async def _hand_over(self, published: Published) -> None:
        """Through the collective, where the recipe says so and it works; else by files."""
        if self._link is not None:
            try:
                await self._link.send(published)
                return
            except LinkError as error:
                self.tell(f"new weights go to vLLM by a file this time: {error}")
        await self._call("reload_weights", weights_path=str(await published.written()))

    async def _call(self, method: str, **arguments: Any) -> Sequence[Any]:
        """Run a method of every worker."""
        said: Sequence[Any] = await self.llm.collective_rpc(method, kwargs=arguments)
        return said

    async def rest(self) -> None:
        if self.settings.vllm.sleep and self.settings.on_gpu and self.llm is not None and not self._asleep:
            await self.llm.sleep(level=1)
            self._asleep = True

    async def close(self) -> None:
        self._shut_down()

    def _asked(self, params: SamplingParams) -> Any:
        import vllm
        from vllm.sampling_params import RequestOutputKind

        return vllm.SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=None if params.temperature == 0 else params.seed,
            stop_token_ids=list(params.stop_tokens),
            ignore_eos=True,  # a turn ends where its request says
            logprobs=self.settings.vllm.top_k,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _piece(self, written: Any, cached: int | None) -> Piece:
        tokens = list(written.token_ids)
        sampled, top_NK = _columns(written.logprobs, len(tokens), self.settings.vllm.top_k)
        return Piece(
            tokens=tokens,
            logprobs=sampled,
            top_NK=top_NK,
            version=self._version,
            finish=written.finish_reason,
            cached=cached,
        )

    async def _awake(self) -> Any:
        async with self._starting:
            if self.llm is not None and self.llm.errored:
                self._shut_down()
            if self.llm is None:
                await self._launch()
            await self._wake()
        return self.llm

    def _shut_down(self) -> None:
        if self.llm is not None:
            self.llm.shutdown()
            self.llm.shutdown = lambda timeout=None: None  # its __del__ would do it again, at the interpreter's end in vain
            self.llm, self._asleep = None, False
            if self._link is not None:
                self._link.close()

    async def _wake(self) -> None:
        if self._asleep:
            await self.llm.wake_up()
            self._asleep = False

    async def _launch(self) -> None:
        assert self.published is not None  # the engine hands weights over first
        os.environ.update(self.settings.environment())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = AsyncEngineArgs(model=str(await self.published.written()), **self.settings.arguments())
            self.llm = AsyncLLM.from_engine_args(arguments)
        except TypeError as error:
            raise ConfigError(f"vLLM does not know an option: {first_line(error)}", where="engine.vllm.options") from error
        except Exception as error:  # what vLLM's start runs into: memory, a model it cannot read, a wrong option
            raise ConfigError(
                f"vLLM does not start: {first_line(error)}", where="engine", hint="Its own log above says more"
            ) from error
        await self.llm.update_weight_version(self.published.label)
        self._version = self.published.version
        self._link = Link(self._call, transfer_s=self.settings.vllm.transfer_s) if self.settings.broadcasts else None


def _columns(flat: Any, num_tokens: int, top_k: int) -> tuple[list[float], np.ndarray]:
    """Log-probabilities of the sampled tokens [N], and the K highest of each position [N, K], of vLLM's flat list: each position's
    sampled token, then the K highest. Where vLLM joined several outputs, a sampled token that is one of those stands there once."""
    values = np.asarray(flat.logprobs, dtype=np.float64)
    if len(values) == num_tokens * (top_k + 1):
        rows = values.reshape(num_tokens, top_k + 1)
        return rows[:, 0].tolist(), rows[:, 1:]
    parts = [values[start:end] for start, end in zip(flat.start_indices, flat.end_indices, strict=True)]
    tops = [part[1:] if len(part) > top_k else np.sort(part)[::-1] for part in parts]
    return [float(part[0]) for part in parts], np.stack(tops) if tops else np.empty((0, top_k))
