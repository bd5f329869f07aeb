"""vLLM inside this process: its asynchronous engine, whose core runs in a child process of its own.

Knows vLLM's Python interface. A core that dies is started again, with the newest weights, by the next request.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from arpo.engines import SamplingParams
from arpo.engines.vllm.adapters import AdapterError
from arpo.engines.vllm.answers import Piece, pieces
from arpo.engines.vllm.transport import WeightSnapshot, sampling_arguments
from arpo.engines.vllm.weight_sender import TransferError, WeightSender
from arpo.errors import ArpoError, ConfigError, EngineError, first_line

if TYPE_CHECKING:
    from arpo.engines.vllm.settings import Settings


EXTENSION = {"worker_extension_cls": "arpo.engines.vllm.worker.Extension"}
"""Its module is imported by vLLM's workers alone."""
LOOK_S = 0.5  # between looks at whether the core lives, while vLLM is waited for


class InProcess:
    """A `Transport`. Everything runs on one event loop."""

    def __init__(self, settings: "Settings", tell: Callable[[str], None] = lambda text: None) -> None:
        self.settings, self.tell = settings, tell
        self.llm: Any = None
        self.published: WeightSnapshot | None = None
        self._changing = asyncio.Lock()  # one start, update of weights, sleep or waking at a time
        self._asleep = False
        self._num_adapters = 0
        self._adapter: Any = None  # vLLM's LoRARequest, which new requests are written with
        self._sender: WeightSender | None = None  # None: weights go by files

    async def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = sampling_arguments(params, tokenizes=self.settings.tokenizes)
        try:
            llm = await self._awake()
            top_k, adapter = self.settings.vllm.top_k, self._adapter
            answer = pieces(llm, list(prompt), sampling, top_k=top_k, head=params.head, adapter=adapter)
            async with aclosing(answer) as stream:
                async for piece in stream:
                    yield piece
        except EngineDeadError as error:
            raise EngineError("vLLM died; the next request starts it again") from error
        except (asyncio.CancelledError, GeneratorExit, ArpoError):
            raise
        except Exception as error:  # vLLM raises whatever its parts raise, and a request must not end a run
            raise EngineError(f"vLLM failed: {first_line(error.__cause__ or error)}") from error

    async def update_weights(self, published: WeightSnapshot) -> None:
        if self.published is None:
            self.published = published
            await self._awake()
            return
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._changing:
            self.published = published
            if self.llm is None or self.llm.errored:
                return  # the next request starts it with these
            try:
                await self._unless_dead(self._update_weights(published))
            except EngineDeadError:
                return  # as above
            except AdapterError:
                raise
            except TransferError as error:  # what it holds may be half old, half new
                self.tell(f"vLLM is started again with new weights, which did not reach it: {error}")
                self._give_up()
            except BaseException as error:  # what it holds may be half old, half new
                self._give_up()
                if isinstance(error, Exception):
                    raise EngineError(f"vLLM cannot load new weights: {first_line(error)}") from error
                raise

    async def _update_weights(self, published: WeightSnapshot) -> None:
        await self._wake()
        if published.base is not None:
            await self._add(published)
            return
        self._adapter = None
        await self.llm.pause_generation(mode="keep", clear_cache=False)
        await self._hand_over(published)
        await self.llm.reset_prefix_cache(reset_running_requests=True)
        await self.llm.update_weight_version(published.label)
        await self.llm.resume_generation()

    async def _add(self, published: WeightSnapshot) -> None:
        """Serve adapters from now on. Raises AdapterError where vLLM refuses them."""
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        folder = str(await published.written())
        self._num_adapters += 1
        adapter = LoRARequest(lora_name=published.label, lora_int_id=self._num_adapters, lora_path=folder)
        try:
            await self.llm.add_lora(adapter)
        except EngineDeadError:
            raise
        except Exception as error:
            raise AdapterError(first_line(error)) from error
        self._adapter = adapter

    async def _hand_over(self, published: WeightSnapshot) -> None:
        if self._sender is not None and published.parts is not None:
            await self._sender.send(published)
        else:
            await self._call("reload_weights", weights_path=str(await published.written()))

    async def _call(self, method: str, **arguments: Any) -> None:
        """Run a method of every worker; vLLM's weight transfer is such methods too."""
        await self.llm.collective_rpc(method, kwargs=arguments)

    async def _num_workers(self) -> int:
        return int(self.llm.vllm_config.parallel_config.world_size_across_dp)

    def _give_up(self) -> None:
        """Fail the requests in flight; the next one starts vLLM again."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self.llm.output_processor.propagate_error(EngineDeadError())
        self._shut_down()

    async def sleep(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._changing:
            sleeps = self.settings.vllm.sleep and self.settings.on_gpu
            if sleeps and self.llm is not None and not self.llm.errored and not self._asleep:
                with suppress(EngineDeadError):  # the next request starts it
                    await self._unless_dead(self.llm.sleep(level=1))
                    self._asleep = True

    async def close(self) -> None:
        self._shut_down()

    async def _awake(self) -> Any:
        async with self._changing:
            if self.llm is not None and self.llm.errored:
                self._shut_down()
            if self.llm is None:
                await self._launch()
            await self._unless_dead(self._wake())
        return self.llm

    async def _unless_dead(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, which vLLM leaves waiting for ever where its core dies meanwhile. Raises EngineDeadError then."""
        from vllm.v1.engine.exceptions import EngineDeadError

        working = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({working}, timeout=LOOK_S))[0]:
                if self.llm.errored:
                    raise EngineDeadError
            working.result()
        finally:
            working.cancel()

    def _shut_down(self) -> None:
        if self.llm is not None:
            self.llm.shutdown()
            self.llm.shutdown = lambda timeout=None: (
                None
            )  # its __del__ would do it again, at the interpreter's end in vain
            self.llm, self._asleep = None, False
            if self._sender is not None:
                self._sender.close()

    async def _wake(self) -> None:
        if self._asleep:
            await self.llm.wake_up()
            self._asleep = False

    async def _launch(self) -> None:
        assert self.published is not None  # the engine hands weights over first
        os.environ.update(self.settings.environment() | {"ARPO_VLLM_OWNER": str(os.getpid())})
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            weights = self.published.base or self.published
            arguments = AsyncEngineArgs(model=str(await weights.written()), **EXTENSION | self.settings.arguments())
            self.llm = AsyncLLM.from_engine_args(arguments)
        except TypeError as error:
            raise ConfigError(
                f"vLLM does not know an option: {first_line(error)}", where="engine.vllm.options"
            ) from error
        except Exception as error:  # what vLLM's start runs into: memory, a model it cannot read, a wrong option
            raise ConfigError(
                f"vLLM does not start: {first_line(error)}", where="engine", hint="Its own log above says more"
            ) from error
        await self._unless_dead(self.llm.update_weight_version(weights.label))
        self._adapter = None
        if self.published.base is not None:
            await self._unless_dead(self._add(self.published))
        self._sender = self.settings.sender(self._call, self._num_workers)
