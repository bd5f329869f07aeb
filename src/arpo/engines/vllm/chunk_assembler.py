"""One turn: vLLM's pieces go in, an engine's chunks come out.

A chunk ends at the head, every 16 tokens, where the weights change, and at the end of the turn, which is the token that
completes a stop: found by its bytes, whatever vLLM thinks of it. What vLLM wrote beyond is dropped. Knows no vLLM.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arpo.core.tree import FinishReason
from arpo.engines import Chunk, SamplingParams
from arpo.engines.stops import Pieces, StopFinder
from arpo.engines.vllm.answers import EVERY, Piece


class ChunkAssembler:
    """`feed` it pieces until it has `finished`. spell: bytes of a token, needed for stop strings."""

    def __init__(self, params: SamplingParams, spell: Pieces | None) -> None:
        self.params = params
        self.finished = False
        self.num_tokens = 0  # in chunks and waiting
        self._finder = StopFinder(spell or (lambda _: b""), params.stop, params.stop_tokens)
        self._waiting: list[Piece] = []
        self._num_waiting = 0
        self._version = 0

    def feed(self, piece: Piece) -> list[Chunk]:
        """The chunks that are complete with `piece`."""
        chunks: list[Chunk] = []
        if self._waiting and piece.version != self._version:
            chunks.append(self._chunk(None))
        self._version = piece.version
        tokens = piece.tokens[: self.params.max_tokens - self.num_tokens].tolist()
        end = self._finder.first(tokens)
        finish = FinishReason.STOP if end is not None else None
        end = len(tokens) if end is None else end
        if finish is None and self.num_tokens + end == self.params.max_tokens:
            finish = FinishReason.LENGTH
        elif finish is None and piece.finish is not None:
            finish = FinishReason.STOP if piece.finish == "stop" else FinishReason.LENGTH
        start = 0
        while start < end:
            head = self.params.head - self.num_tokens
            size = min(end - start, head if head > 0 else max(1, EVERY - self._num_waiting))
            self._waiting.append(piece.part(start, start + size, piece.version))
            self._num_waiting += size
            self.num_tokens += size
            start += size
            if (size == head or (head <= 0 and self._num_waiting >= EVERY)) and not (finish and start == end):
                chunks.append(self._chunk(None))
        return [*chunks, self._chunk(finish)] if finish else chunks

    def _chunk(self, finish: FinishReason | None) -> Chunk:
        self.finished = finish is not None
        waiting, self._waiting, self._num_waiting = self._waiting, [], 0
        low, high = _joined([piece.low for piece in waiting]), _joined([piece.high for piece in waiting])
        return Chunk(
            tokens=array("i", _joined([piece.tokens for piece in waiting]).tobytes()),
            logprobs=_floats(_joined([piece.logprobs for piece in waiting])),
            entropies=_floats((low + high) / 2),
            bounds=(_floats(low), _floats(high)) if waiting else None,
            version=self._version,
            finish=finish,
        )


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def _floats(values: NDArray[Any]) -> array[float]:
    return array("f", values.astype(np.float32, copy=False).tobytes())
