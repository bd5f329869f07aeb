"""The two ways to reach vLLM (in this process, over HTTP) behind one protocol, and what passes through it.

Whoever implements it knows vLLM; the engine knows only this.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from arpo.engines import SamplingParams
from arpo.engines.vllm.answers import Piece

Parts = Iterator[tuple[str, torch.Tensor, torch.dtype]]


UNCHANGED: Mapping[str, float] = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sent with every request: a server may have other defaults, from the model's generation_config."""


def sampling_arguments(params: SamplingParams, *, tokenizes: bool) -> dict[str, Any]:
    """vLLM's sampling parameters. tokenizes: it has the model's tokenizer, and so ends a turn at a stop string by
    itself; where exactly the turn ends, the engine finds."""
    sampling: dict[str, Any] = {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        **UNCHANGED,
        "stop_token_ids": list(params.stop_tokens),
        "ignore_eos": True,  # a turn ends where its request says
        "detokenize": False,
    }
    if params.temperature > 0:
        sampling["seed"] = params.seed
    if params.stop and tokenizes:
        sampling |= {"stop": list(params.stop), "detokenize": True, "skip_special_tokens": False}
        sampling |= {"spaces_between_special_tokens": False}
    return sampling


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
    base: "WeightSnapshot | None" = None  # `folder` has adapters alone, which add to these; their name is `label`
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
