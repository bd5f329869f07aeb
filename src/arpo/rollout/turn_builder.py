"""A turn while an engine writes it: chunks go in, a head and then the turn come out.

Knows chunks. Refuses to know what the tokens mean and where the turn stands.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array

from arpo.core.events import HeadKnown
from arpo.core.place import Place
from arpo.core.tree import Call, FinishReason, Role, Turn
from arpo.engines import Chunk


class TurnBuilder:
    """`finish` is None until the engine has said why the turn ends."""

    def __init__(self) -> None:
        self.tokens = array("i")
        self.finish: FinishReason | None = None
        self._logprobs, self._entropies = array("f"), array("f")
        self._low, self._high = array("f"), array("f")
        self._interval = False
        self._versions: list[tuple[int, int]] = []

    def add(self, chunk: Chunk) -> None:
        """Take in the next tokens. Raises ValueError for a chunk whose arrays do not run over its tokens: an engine's
        mistake."""
        low, high = chunk.bounds or (chunk.entropies, chunk.entropies)
        arrays = (chunk.logprobs, chunk.entropies, low, high)
        if any(len(values) != len(chunk.tokens) for values in arrays):
            raise ValueError(
                f"an engine's chunk of {len(chunk.tokens)} tokens has arrays of {[len(v) for v in arrays]} numbers"
            )
        self.tokens.extend(chunk.tokens)
        self._logprobs.extend(chunk.logprobs)
        self._entropies.extend(chunk.entropies)
        self._low.extend(low)
        self._high.extend(high)
        self._interval |= chunk.bounds is not None
        self.finish = chunk.finish
        if chunk.tokens:
            before = self._versions.pop()[1] if self._versions and self._versions[-1][0] == chunk.version else 0
            self._versions.append((chunk.version, before + len(chunk.tokens)))

    def head(self, place: Place, length: int) -> HeadKnown:
        """Its first `length` tokens as an event."""
        return HeadKnown(
            place, self._entropies[:length], (self._low[:length], self._high[:length]) if self._interval else None
        )

    def turn(self, place: Place, role: Role, calls: tuple[Call, ...]) -> Turn:
        """The whole of it, once `finish` is known."""
        assert self.finish is not None
        return Turn(
            place=place,
            role=role,
            tokens=self.tokens,
            logprobs=self._logprobs,
            entropies=self._entropies,
            bounds=(self._low, self._high) if self._interval else None,
            versions=tuple(self._versions),
            finish=self.finish,
            calls=calls,
        )
