"""Words for matching: what a text and a query have in common, whatever their case, accents and plural s."""

import re
import unicodedata
from functools import lru_cache

WORD = re.compile(r"\w+(?:[.,]\d+)*")
GLUE = """a an and are as at be by did do does for from had has have how in is it its of on or s that the their this to
was were what when where which who whom whose why with"""
STOPWORDS = frozenset(GLUE.split())  # in short passages they only add noise; the "s" is what a possessive leaves
VERSION = "words-2"  # of an index: one that was built with other words cannot be searched with these


def words(text: str) -> list[str]:
    """Words for matching: folded case, accents off, numbers whole, plural s off, without words that carry no meaning."""
    return [_singular(word) for word in WORD.findall(plain(text)) if word not in STOPWORDS]


def plain(text: str) -> str:
    """`text` with folded case and without accents."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFD", text.casefold())
    return "".join(character for character in folded if not "\u0300" <= character <= "\u036f")


@lru_cache(maxsize=1 << 16)
def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
