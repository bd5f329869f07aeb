"""Encodes text as int32 numbers without a vocabulary, for models whose tokenizer we do not have.

    four ASCII characters at a time -> 1 << 28 | their 7-bit codes        any other character -> its code point

A number holds about four characters of English or one of Chinese. That is close enough to a tokenizer for limits in
tokens to keep their meaning. Every text has one encoding, and texts that were encoded separately decode together.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import re
from array import array
from collections.abc import Iterable

SIZE = 1 << 29  # every number is below this
_FLAG = 1 << 28
_PIECES = re.compile(r"[\x01-\x7f]{1,4}|[^\x01-\x7f]")


def encode(text: str) -> array[int]:
    """Numbers of `text`. Lone surrogates and NUL become U+FFFD, since JSON on the wire may not hold them."""
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return array("i", [_number(piece) for piece in _PIECES.findall(clean)])


def decode(numbers: Iterable[int]) -> str:
    """The inverse of `encode`. Any other number becomes U+FFFD."""
    return "".join(map(_piece, numbers))


def _number(piece: str) -> int:
    if ord(piece[0]) > 0x7F:
        return ord(piece)
    number = _FLAG
    for at, character in enumerate(piece):
        number |= ord(character) << (7 * at)
    return number


def _piece(number: int) -> str:
    if _FLAG <= number < SIZE:
        codes = [(number >> shift) & 0x7F for shift in (0, 7, 14, 21)]
        return "".join(chr(code) for code in codes if code)
    return chr(number) if 0x7F < number < 0x110000 else "\ufffd"
