"""The two ways to reach vLLM (in this process, over HTTP) behind one protocol, and what passes through it.

Whoever implements it knows vLLM; the engine knows only this.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from arpo.engines import SamplingParams

Parts = Iterator[tuple[str, torch.Tensor, torch.dtype]]
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What vLLM wrote next: tokens [n], their log-probabilities [n], and the K highest of each position, highest first
    [n, K]."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    top_NK: NDArray[np.floating]
    version: int
    finish: Finish | None = None
    cached: int | None = None  # prompt tokens whose keys were known; said once a request


@dataclass(slots=True, eq=False)
class WeightSnapshot:
    """Weights as a Hugging Face folder (config, safetensors) and their number. `label`: what vLLM calls them, of this
    run alone."""

    folder: Path | None  # None: `write` has not been needed
    version: int
    label: str
    write: Callable[[], Path] | None = None
    parts: Callable[[], Parts] | None = (
        None  # for `WeightSender`: names of a checkpoint, tensors, and their types there
    )
    shapes: Callable[[], Parts] | None = None  # the same without memory; None: `parts` costs nothing
    device: torch.device | None = None  # the learner's; None: main memory
    readers: int = 0  # servers that are being started from the folder, which therefore stays
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def written(self) -> Path:
        """The folder, written now if it was not before."""
        async with self._writing:
            if self.folder is None:
                assert self.write is not None
                self.folder = await asyncio.to_thread(self.write)
        return self.folder


class Transport(Protocol):
    """vLLM, reached in one way. Every method runs on one event loop; `update_weights` comes before the first
    `stream`."""

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        """Sample after `prompt`; closing it cancels the request. Raises EngineError."""
        ...

    async def update_weights(self, published: WeightSnapshot) -> None:
        """Use these weights from now on; requests in flight go on with them. Raises EngineError."""
        ...

    async def sleep(self) -> None:
        """No request is in flight: give back what memory can be taken again."""
        ...

    async def close(self) -> None: ...
