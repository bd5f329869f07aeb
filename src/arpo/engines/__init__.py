"""The seam to inference: token ids in, token ids with log-probabilities and entropies out."""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from arpo.core.tree import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # a turn ends with the token that completes one of these, kept whole
    stop_tokens: tuple[int, ...] = ()  # ids that end a turn, kept too
    seed: int = 0  # of this request alone
    head: int = 0  # deliver a chunk as soon as this many tokens exist (0: no hurry)
    tree: str = ""  # requests of one tree share prefixes: an engine with replicas sends them to the same one


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The next tokens of a turn. Arrays run over its tokens. The last chunk, and only that, has `finish`."""

    tokens: array[int]  # 'i'
    logprobs: array[float]  # 'f', at the sampling temperature (temperature 0: at temperature 1)
    entropies: array[float]  # 'f', nats, at temperature 1
    bounds: tuple[array[float], array[float]] | None = None
    version: int = 0  # weight version that wrote these tokens
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights for an engine: `state` maps parameter names to tensors (or is a folder path); `version` numbers them.

    `changing`: the tensors will change while the engine samples, so it copies what it keeps. Else it may share them: it
    samples nothing between a change and the next `update_weights`.
    """

    version: int
    state: Any
    changing: bool = False


class Engine(Protocol):
    """What samples turns. `arpo.engines.base:EngineBase` says what else an engine can have."""

    def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """Sample one turn after `prompt`. Closing the iterator cancels the request. Raises EngineError."""
        ...

    async def update_weights(self, weights: Weights) -> None:
        """Sample with `weights` from now on; requests in flight go on with them. A training run hands over its first
        weights in this way as well; before that, an engine samples with those of the model it was built on."""
        ...

    async def sleep(self) -> None:
        """Give back, until the next request, the memory that can be taken again: the learner is about to need it."""
        ...

    async def close(self) -> None: ...
