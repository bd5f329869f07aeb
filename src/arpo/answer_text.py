"""Compares answers as text: normalised equality, containment, token F1. Numbers stay whole, so -5 never equals 5.

Chinese and Japanese are written without spaces, so every character is a token. Full-width characters equal their
half-width forms. Pure functions of two strings. Refuses to know the value of a number: `numbers`, `quantities` and
`maths` do.
"""

import re
import unicodedata
from collections import Counter

HAN = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese and Japanese characters, for a character class of a regular expression."""
IS_HAN = re.compile(f"[{HAN}]")

LETTER = rf"[^\W\d_{HAN}]"
LETTER_OR_DIGIT = rf"[^\W_{HAN}]"
# a sign belongs to a number unless a character comes right before it ("1990-1995" is two years, "GPT-4" has no -4)
SIGN = rf"(?:(?<![.)])(?<![^\W{HAN}])[-+])?"
INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
NUMBER = (
    rf"(?>{SIGN}(?:{INTEGER}(?:\.\d+)*|\.\d+)(?:/\d+(?:\.\d+)?)*%?)(?!{LETTER})"  # -5, 1.5, 1,000, 12/5, 3/4/2020, 5%
)
MEASURE = rf"{SIGN}\d{LETTER_OR_DIGIT}*(?:[.,/]\d{LETTER_OR_DIGIT}*)*"  # 10th, -1.5kg
ACRONYM = rf"(?:{LETTER}\.){{2,}}"  # U.S.
WORD = rf"{LETTER}{LETTER_OR_DIGIT}*(?:['’]{LETTER_OR_DIGIT}+|\.\d{LETTER_OR_DIGIT}*)*"  # obama's, v1.2.3
MARKED = r"(?<![^\W_])[a-z](?:\+\+|[#+♯])(?![^\W_])"  # C++, C#, A+
TOKEN = re.compile("|".join((rf"[{HAN}]", ACRONYM, MARKED, NUMBER, MEASURE, WORD)))
STROKES = str.maketrans("łøđħı", "lodhi")  # letters with a stroke do not decompose
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}  # １２％ -> 12%
ARTICLES = ("the", "a", "an")
CLOSED = ("yes", "no")  # answers that get no partial credit
GLUE = """a an and are as at be by did do does for from had has have how in is it its of on or s that the their this to
was were what when where which who whom whose why with"""
STOPWORDS = frozenset(GLUE.split())  # they say nothing about what a short text is about; "s" comes from possessives


def vocabulary(words: str) -> frozenset[str]:
    """The words of a text, for a list of words in a module."""
    return frozenset(words.split())


def tokens(text: str) -> list[str]:
    """The words and numbers of `text`, with folded case and without accents, punctuation and articles. Numbers stay
    whole ("1,000" becomes "1000"); every Chinese or Japanese character is a token.

    A final "a" stays ("vitamin A"). Text without any word becomes one token.
    """
    decomposed = unicodedata.normalize("NFD", text.replace("−", "-").translate(FULL_WIDTH).casefold())
    bare = unicodedata.normalize("NFC", "".join(char for char in decomposed if not "\u0300" <= char <= "\u036f"))
    bare = bare.translate(STROKES)
    words = [_canonical(token) for token in TOKEN.findall(bare)]
    kept = [word for at, word in enumerate(words) if word not in ARTICLES or (word == "a" and at == len(words) - 1)]
    whole = " ".join(bare.split())
    return kept or words or ([whole] if whole else [])


def _canonical(token: str) -> str:
    if any(character.isdigit() for character in token):
        return token.replace(",", "").lstrip("+")
    return token.replace(".", "").replace("'", "").replace("’", "")


def exact(answer: str, gold: str) -> float:
    """1.0 if both have the same tokens in the same order, and at least one."""
    answer_tokens = tokens(answer)
    return float(bool(answer_tokens) and answer_tokens == tokens(gold))


def contains(answer: str, gold: str) -> float:
    """1.0 if the answer contains the gold's tokens as a contiguous run."""
    gold_tokens, answer_tokens = tokens(gold), tokens(answer)
    length = len(gold_tokens)
    starts = range(len(answer_tokens) - length + 1)
    return float(length > 0 and any(answer_tokens[at : at + length] == gold_tokens for at in starts))


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of token precision and recall (SQuAD's F1, over tokens that keep numbers whole)."""
    answer_tokens, gold_tokens = tokens(answer), tokens(gold)
    if not answer_tokens or not gold_tokens:
        return 0.0
    if any(len(words) == 1 and words[0] in CLOSED for words in (gold_tokens, answer_tokens)):
        return float(answer_tokens == gold_tokens)
    shared = sum((Counter(answer_tokens) & Counter(gold_tokens)).values())
    return 2 * shared / (len(answer_tokens) + len(gold_tokens))
