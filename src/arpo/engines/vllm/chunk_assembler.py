"""One turn: vLLM's pieces go in, an engine's chunks come out.

A chunk ends at the head, every 16 tokens, where the weights change, and at the end of the turn, which is the token that
completes a stop: found by its bytes, whatever vLLM thinks of it. What vLLM wrote beyond is dropped. Knows no vLLM.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array

import numpy as np

from arpo.core.tree import FinishReason
from arpo.engines import Chunk, SamplingParams
from arpo.engines.sampling import intervals
from arpo.engines.stops import Pieces, StopFinder
from arpo.engines.vllm.transport import Piece

EVERY = 16  # tokens between chunks once the head is delivered


class ChunkAssembler:
    """`feed` it pieces until it has `finished`. spell: bytes of a token, needed for stop strings."""

    def __init__(self, params: SamplingParams, spell: Pieces | None, vocab_size: int) -> None:
        self.params, self.vocab_size = params, vocab_size
        self.finished = False
        self.num_tokens = 0
        self._finder = StopFinder(spell or (lambda _: b""), params.stop, params.stop_tokens)
        self._waiting: list[tuple[int, float, np.ndarray]] = []
        self._version = 0

    def feed(self, piece: Piece) -> list[Chunk]:
        """The chunks that are complete with `piece`."""
        chunks: list[Chunk] = []
        if self._waiting and piece.version != self._version:
            chunks.append(self._chunk(None))
        self._version = piece.version
        for token, logprob, top_K in zip(piece.tokens, piece.logprobs, piece.top_NK, strict=True):
            self._waiting.append((token, logprob, top_K))
            self.num_tokens += 1
            if self._finder.feed(token):
                return [*chunks, self._chunk(FinishReason.STOP)]
            if self.num_tokens == self.params.max_tokens:
                return [*chunks, self._chunk(FinishReason.LENGTH)]
            if self.num_tokens == self.params.head or (
                len(self._waiting) >= EVERY and self.num_tokens > self.params.head
            ):
                chunks.append(self._chunk(None))
        if piece.finish is not None:
            chunks.append(self._chunk(FinishReason.STOP if piece.finish == "stop" else FinishReason.LENGTH))
        return chunks

    def _chunk(self, finish: FinishReason | None) -> Chunk:
        self.finished = finish is not None
        waiting, self._waiting = self._waiting, []
        if not waiting:
            empty = array("f")
            return Chunk(tokens=array("i"), logprobs=empty, entropies=empty, version=self._version, finish=finish)
        tokens, logprobs, rows = zip(*waiting, strict=True)
        low, high = intervals(np.stack(rows), self.vocab_size)
        return Chunk(
            tokens=array("i", tokens),
            logprobs=array("f", logprobs),
            entropies=array("f", (low + high) / 2),
            bounds=(array("f", low), array("f", high)),
            version=self._version,
            finish=finish,
        )
