"""Where a turn ends: finds the token that completes a stop string, whatever tokens the string is split over.

Works on bytes, since one character may span tokens. Only the tail that could hold a stop string is kept, so a token
costs the same at the end of a long turn as at its start. Knows tokenizers, not engines.
"""

from collections.abc import Callable, Sequence
from typing import Any

Pieces = Callable[[int], bytes]


class StopFinder:
    """Feed it a turn's tokens one by one; `feed` is True at the token that ends the turn."""

    __slots__ = ("_longest", "_pieces", "_stops", "_tail", "_tokens")

    def __init__(self, pieces: Pieces, stop: Sequence[str], stop_tokens: Sequence[int]) -> None:
        self._pieces = pieces
        self._stops = tuple(s.encode() for s in stop if s)
        self._tokens = frozenset(stop_tokens)
        self._longest = max(map(len, self._stops), default=0)
        self._tail = b""

    def feed(self, token: int) -> bool:
        if token in self._tokens:
            return True
        if not self._stops:
            return False
        self._tail += self._pieces(token)
        if any(stop in self._tail for stop in self._stops):
            return True
        self._tail = self._tail[max(0, len(self._tail) - self._longest + 1) :]
        return False

    def first(self, tokens: Sequence[int]) -> int | None:
        """How many of `tokens` the turn takes up to the one that ends it; None where it goes on. As `feed` for each, in
        one look where nothing ends."""
        if self._tokens.isdisjoint(tokens):
            if not self._stops:
                return None
            text = self._tail + b"".join(map(self._pieces, tokens))
            if not any(stop in text for stop in self._stops):
                self._tail = text[max(0, len(text) - self._longest + 1) :]
                return None
        return next((number for number, token in enumerate(tokens, 1) if self.feed(token)), None)


def pieces(tokenizer: Any) -> Pieces:
    """The bytes that a token adds to a text, special tokens as their text.

    Byte-level and byte-fallback vocabularies are read from the table; of any other tokenizer each token is decoded
    behind a neighbour once. Every answer is remembered.
    """
    known: dict[int, bytes] = {}
    special = {index: str(added) for index, added in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    read = _reader(tokenizer)

    def piece(token: int) -> bytes:
        spelling = known.get(token)
        if spelling is None:
            spelling = known[token] = special[token].encode() if token in special else read(token)
        return spelling

    return piece


def _reader(tokenizer: Any) -> Pieces:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = repr(getattr(backend, "decoder", ""))
    if "ByteLevel" in kind:
        table = _byte_table()

        def byte_level(token: int) -> bytes:
            text = tokenizer.convert_ids_to_tokens(token)
            return b"" if text is None else b"".join(table.get(c, c.encode()) for c in text)

        return byte_level
    if "ByteFallback" in kind or "Metaspace" in kind or "▁" in kind:

        def sentence_piece(token: int) -> bytes:
            text = tokenizer.convert_ids_to_tokens(token)
            if text is None:
                return b""
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                return bytes([int(text[3:5], 16)])
            return text.replace("▁", " ").encode()

        return sentence_piece

    def neighbour(token: int) -> bytes:
        alone = tokenizer.decode([token, token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        first = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return alone[len(first) :].encode()

    return neighbour


def _byte_table() -> dict[str, bytes]:
    """Characters that stand for bytes in byte-level vocabularies (printable ones stand for themselves, the rest from
    U+0100)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): bytes([b]) for b in plain}
    rest = (b for b in range(256) if b not in set(plain))
    table.update({chr(0x100 + i): bytes([b]) for i, b in enumerate(rest)})
    return table
