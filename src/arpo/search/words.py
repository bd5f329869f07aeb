"""Splits text into words for matching, which ignore case, accents and plural s.

Chinese and Japanese do not separate words: there every pair of neighbouring characters is a word, like Lucene's
bigrams.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from arpo.answer_text import HAN, IS_HAN, STOPWORDS

WORD = re.compile(r"\w+(?:[.,]\d+)*")
PART = re.compile(f"[{HAN}]+|[^{HAN}]+")
VERSION = "words-3"  # an index that was built with another version cannot be searched


def words(text: str) -> list[str]:
    """The words of a text with folded case, whole numbers, and without accents, plural s and stop words."""
    parts = WORD.findall(folded(text))
    if IS_HAN.search(text):
        parts = [part for word in parts for part in _parts(word)]
    return [_singular(word) for word in parts if word not in STOPWORDS]


def _parts(word: str) -> Iterator[str]:
    """`word` with every run of Chinese or Japanese split into pairs of neighbouring characters."""
    for part in PART.findall(word):
        if len(part) > 1 and IS_HAN.match(part):
            yield from (part[at : at + 2] for at in range(len(part) - 1))
        else:
            yield part


def folded(text: str) -> str:
    """`text` with folded case and without accents."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", text.casefold())
    kept = "".join(character for character in decomposed if not "\u0300" <= character <= "\u036f")
    return unicodedata.normalize("NFC", kept)  # the marks of kana are not accents


@lru_cache(maxsize=1 << 16)
def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
