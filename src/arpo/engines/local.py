"""The embedded engine: torch in this process, all live requests of a lane in one batch.

On a CPU the requests are spread over lanes, each with a thread and a batch of its own: the small operations of decoding
gain nothing from two threads that have to wait for each other after every one of them. Knows which lane a request
belongs to and how all of them get new weights; what a lane does, `lane` knows.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch

from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.base import EngineBase
from arpo.engines.config import Dtype, EngineConfig, has_fast_bf16
from arpo.engines.decoder import Decoder
from arpo.engines.exact import ExactDecoder
from arpo.engines.lane import Lane
from arpo.engines.network import Network, has_half_weights, linear_kind
from arpo.engines.slots import Slots
from arpo.engines.stats import EngineStats
from arpo.engines.stops import pieces
from arpo.errors import ConfigError, EngineError

_LANES = 4  # at most: each computes the prompt that all trees share
_ROWS = 16  # turns at once that a lane should have: products of matrices with fewer rows are slower
_TREES = 4096  # trees whose lane is remembered


class LocalEngine(EngineBase):
    """Samples from a Hugging Face causal LM with full attention.

    model: its parameters are shared where they are used as they are (float32 on the same device), else copied; call
    `update_weights` after changing them. tokenizer: needed for stop strings only. slots: turns sampled at once.
    max_tokens_per_slot: longest context with its turn (default: the model's). memory_gb: bound for keys and values.
    prefill: prompt tokens a step, so that a long prompt does not stop the others. device: where to compute (default:
    the model's). deterministic: results do not depend on timing; float32 and slow. lanes: batches that are computed
    side by side, each on its share of torch's threads (default: one a core on a CPU, up to 4; one on a GPU). Requests
    of one tree (`SamplingParams.tree`) share a lane.
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
        lanes: int | None = None,
    ) -> None:
        place = torch.device(device) if device is not None else next(model.parameters()).device
        kind = _dtype(dtype, place, deterministic)
        self.deterministic = deterministic
        self._network = network = Network(model, dtype=kind, device=place, max_tokens=max_tokens_per_slot)
        spell = pieces(tokenizer) if tokenizer is not None else None
        make = ExactDecoder if deterministic else Decoder
        threads = torch.get_num_threads()
        count = lanes or (
            max(1, min(threads, slots // _ROWS, _LANES)) if place.type == "cpu" and not deterministic else 1
        )
        live = -(-slots // count)

        def lane() -> Lane:
            store = Slots(
                network.shape,
                dtype=network.dtype,
                device=place,
                memory=int(memory_gb * 2**30 / count),
                most=1 << 20 if deterministic else 2 * live,
                evicts=not deterministic,
            )
            decoder = make(network, store, spell, live=live, prefill=prefill, stats=EngineStats())
            return Lane(decoder, threads=max(1, threads // count))

        self.lanes = [lane() for _ in range(count)]
        self._homes: OrderedDict[str, Lane] = OrderedDict()  # of trees, the newest last
        self._closed = False

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
        return self.lanes[0].decoder.version

    @property
    def context(self) -> int:  # type: ignore[override]
        """Tokens of a prompt and its turn at most: what the model can read, and the memory hold."""
        return min(self._network.limit, self.lanes[0].decoder.slots.longest())

    @property
    def dtype(self) -> torch.dtype:
        """What the engine computes in."""
        return self._network.dtype

    @property
    def stats(self) -> EngineStats:  # type: ignore[override]
        """What all lanes did so far."""
        return EngineStats.total(lane.decoder.stats for lane in self.lanes)

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """Sample one turn. The first chunk comes as soon as `params.head` tokens exist, the last has `finish`."""
        if self._closed:
            raise EngineError("the engine is closed")
        chunks = self._lane(params.tree).sample(prompt, params)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    def _lane(self, tree: str) -> Lane:
        """The lane that knows the tree's prefixes, or for a new tree the one with the fewest requests."""
        if len(self.lanes) == 1:
            return self.lanes[0]
        lane = self._homes.pop(tree, None) or min(self.lanes, key=lambda lane: lane.num_requests)
        self._homes[tree] = lane
        if len(self._homes) > _TREES:
            self._homes.popitem(last=False)
        return lane

    async def update_weights(self, weights: Weights) -> None:
        """Use `weights` from the next step on. Requests in flight keep their keys; prefixes computed before are
        dropped."""
        if self._closed:
            raise EngineError("the engine is closed")
        releases = []
        try:
            for lane in self.lanes:
                releases.append(await lane.hold())
            first = self.lanes[0]
            _, error = await first.compute(first.decoder.load, weights)
            if error is not None:
                raise error
            for lane in self.lanes:
                lane.deliver(lane.decoder.loaded(weights.version))
        finally:
            for release in releases:
                release.set_result(None)

    async def sleep(self) -> None:
        """Give the memory of keys and values back until the next request; with requests in flight nothing happens."""
        for lane in self.lanes:
            await lane.sleep()

    async def forget(self) -> None:
        """Drop all known prefixes, for example between evaluations with a deterministic engine, which never evicts
        one."""
        for lane in self.lanes:
            await lane.compute(lane.decoder.slots.forget)

    async def close(self) -> None:
        """End every request with EngineError and free the memory. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            for lane in self.lanes:
                await lane.close()


def _dtype(dtype: Dtype | torch.dtype, device: torch.device, deterministic: bool) -> torch.dtype:
    if isinstance(dtype, str) and dtype == "auto":
        if deterministic:
            return torch.float32
        fast = has_fast_bf16() if device.type == "cpu" else device.type == "cuda" and torch.cuda.is_bf16_supported()
        if fast:
            return torch.bfloat16
        return torch.float16 if has_half_weights(device) else torch.float32
    resolved = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if deterministic and resolved != torch.float32:
        raise ConfigError(
            "a deterministic engine computes in float32", where="engine.dtype", value=str(dtype), hint="use 'auto'"
        )
    return resolved


def copied_bytes(config: EngineConfig, device: torch.device, inputs: int = 0) -> float:
    """Bytes that the engine on `device` keeps of its own, beside the model's weights, for a number of a linear layer of
    `inputs` columns; 0: of the embeddings."""
    dtype = _dtype(config.dtype, device, config.deterministic)
    if not inputs:
        return 2 if dtype == torch.bfloat16 else 0
    kind = linear_kind(device, dtype)
    if kind is None:
        return 0 if dtype == torch.float32 else dtype.itemsize
    return dtype.itemsize * -(-inputs // kind.block) * kind.block / inputs
