"""Comparing answers as text: normalised equality, containment, token F1. Numbers stay whole, so -5 is never 5.

Chinese and Japanese, which are written without spaces, are compared by the character; full-width forms count as the usual ones.
Pure functions of two strings. Refuses to know what a number is worth: `numbers`, `quantities` and `maths` do.
"""

import re
import unicodedata
from collections import Counter

from arpo.cjk import HAN

LETTER = rf"[^\W\d_{HAN}]"
LETTER_OR_DIGIT = rf"[^\W_{HAN}]"
# a sign belongs to a number unless something stands right before it ("1990-1995" holds two years, "GPT-4" no minus four)
SIGN = rf"(?:(?<![.)])(?<![^\W{HAN}])[-+])?"
INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
NUMBER = rf"(?>{SIGN}(?:{INTEGER}(?:\.\d+)*|\.\d+)(?:/\d+(?:\.\d+)?)*%?)(?!{LETTER})"  # -5, 1.5, 1,000, 12/5, 3/4/2020, 5%
MEASURE = rf"{SIGN}\d{LETTER_OR_DIGIT}*(?:[.,/]\d{LETTER_OR_DIGIT}*)*"  # 10th, -1.5kg
ACRONYM = rf"(?:{LETTER}\.){{2,}}"  # U.S.
WORD = rf"{LETTER}{LETTER_OR_DIGIT}*(?:['’]{LETTER_OR_DIGIT}+|\.\d{LETTER_OR_DIGIT}*)*"  # obama's, v1.2.3
MARKED = r"(?<![^\W_])[a-z](?:\+\+|[#+♯])(?![^\W_])"  # C++, C#, A+
TOKEN = re.compile("|".join((rf"[{HAN}]", ACRONYM, MARKED, NUMBER, MEASURE, WORD)))
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}  # １２％ -> 12%
ARTICLES = ("the", "a", "an")
CLOSED = ("yes", "no")  # half of a yes is no answer


def tokens(text: str) -> list[str]:
    """Words and numbers of `text`: case folded, accents off, punctuation and articles dropped, numbers whole ("1,000" as "1000"),
    Chinese and Japanese by the character.

    A last "a" is kept ("vitamin A"). Text without any word is one token, as it stands.
    """
    decomposed = unicodedata.normalize("NFD", text.replace("−", "-").translate(FULL_WIDTH).casefold())
    plain = unicodedata.normalize("NFC", "".join(each for each in decomposed if not "\u0300" <= each <= "\u036f"))
    found = [_canonical(token) for token in TOKEN.findall(plain)]
    kept = [token for at, token in enumerate(found) if token not in ARTICLES or (token == "a" and at == len(found) - 1)]
    whole = " ".join(plain.split())
    return kept or found or ([whole] if whole else [])


def _canonical(token: str) -> str:
    if any(character.isdigit() for character in token):
        return token.replace(",", "").lstrip("+")
    return token.replace(".", "").replace("'", "").replace("’", "")


def exact(answer: str, gold: str) -> float:
    """1.0 where both have the same tokens in the same order, and any."""
    left = tokens(answer)
    return float(bool(left) and left == tokens(gold))


def contains(answer: str, gold: str) -> float:
    """1.0 where the gold's tokens stand in the answer, in a row."""
    wanted, given = tokens(gold), tokens(answer)
    return float(bool(wanted) and any(given[at : at + len(wanted)] == wanted for at in range(len(given) - len(wanted) + 1)))


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of token precision and recall (SQuAD's F1, over tokens that keep numbers whole)."""
    given, wanted = tokens(answer), tokens(gold)
    if not given or not wanted:
        return 0.0
    if (len(wanted) == 1 and wanted[0] in CLOSED) or (len(given) == 1 and given[0] in CLOSED):
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))
