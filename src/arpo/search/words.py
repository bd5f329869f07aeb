"""Words for matching: what a text and a query have in common, whatever their case, accents and plural s.

Chinese and Japanese have no space between words: there each pair of neighbours counts as one, as Lucene's bigrams do.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from arpo.answer_text import HAN, IS_HAN

WORD = re.compile(r"\w+(?:[.,]\d+)*")
GLUE = """a an and are as at be by did do does for from had has have how in is it its of on or s that the their this to
was were what when where which who whom whose why with"""
STOPWORDS = frozenset(GLUE.split())  # in short passages they only add noise; the "s" is what a possessive leaves
PART = re.compile(f"[{HAN}]+|[^{HAN}]+")
VERSION = "words-3"  # of an index: one that was built with other words cannot be searched with these


def words(text: str) -> list[str]:
    """Words for matching: folded case, accents off, numbers whole, plural s off, without words that carry no meaning."""
    found = WORD.findall(plain(text))
    if IS_HAN.search(text):
        found = [part for word in found for part in _parts(word)]
    return [_singular(word) for word in found if word not in STOPWORDS]


def _parts(word: str) -> Iterator[str]:
    """`word`, or of Chinese and Japanese in it the pairs of neighbours."""
    for part in PART.findall(word):
        if len(part) > 1 and IS_HAN.match(part):
            yield from (part[at : at + 2] for at in range(len(part) - 1))
        else:
            yield part


def plain(text: str) -> str:
    """`text` with folded case and without accents."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFD", text.casefold())
    kept = "".join(character for character in folded if not "\u0300" <= character <= "\u036f")
    return unicodedata.normalize("NFC", kept)  # kana's marks are no accents


@lru_cache(maxsize=1 << 16)
def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
