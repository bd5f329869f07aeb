"""Comparing answers as text: normalised equality, containment, token F1. Numbers stay whole, so -5 is never 5.

Pure functions of two strings. Refuses to know what a number is worth: `numbers` and `maths` do.
"""

import re
import unicodedata
from collections import Counter

# a sign belongs to a number unless something stands right before it ("1990-1995" holds two years, "GPT-4" no minus four)
SIGN = r"(?:(?<![\w.)])[-+])?"
INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
NUMBER = rf"(?>{SIGN}(?:{INTEGER}(?:\.\d+)*|\.\d+)(?:/\d+(?:\.\d+)?)*%?)(?![^\W\d_])"  # -5, 1.5, 1,000, 12/5, 3/4/2020, 5%
MEASURE = rf"{SIGN}\d[^\W_]*(?:[.,/]\d[^\W_]*)*"  # 10th, -1.5kg
ACRONYM = r"(?:[^\W\d_]\.){2,}"  # U.S.
WORD = r"[^\W\d_][^\W_]*(?:['’][^\W_]+|\.\d[^\W_]*)*"  # obama's, v1.2.3
TOKEN = re.compile("|".join((ACRONYM, NUMBER, MEASURE, WORD)))
ARTICLES = ("the", "a", "an")
CLOSED = ("yes", "no")  # half of a yes is no answer


def tokens(text: str) -> list[str]:
    """Words and numbers of `text`: case folded, accents off, punctuation and articles dropped, numbers whole ("1,000" as "1000").

    A last "a" is kept ("vitamin A"). Text without any word is one token, as it stands.
    """
    decomposed = unicodedata.normalize("NFD", text.replace("−", "-").casefold())
    plain = "".join(character for character in decomposed if not "\u0300" <= character <= "\u036f")
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
