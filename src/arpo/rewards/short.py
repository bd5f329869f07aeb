"""Short answers of benchmarks: a number as a number, a date as a date, a list as GAIA compares it, everything else as a phrase.

Deliberately strict: a sentence that hedges, or holds two numbers, is not right. A judge is kinder. Refuses to know formulas.
"""

import re
import string
from fractions import Fraction

from arpo.rewards.dates import read_date, same_date
from arpo.rewards.numbers import read_number
from arpo.rewards.quantities import numeric, read_quantity
from arpo.rewards.text import CLOSED, HAN, exact, tokens

NEGATIONS = frozenset(["not", "no", "never", "nor", "non", "isnt", "wasnt", "arent", "cannot", "不", "非", "没", "无", "未"])
DENIED = (("is", "not"), ("was", "not"), ("are", "not"), ("isnt",), ("wasnt",), ("arent",))  # after it: "Lima is not the capital"
HEDGES = frozenset(["or", "either", "whether", "maybe", "或", "或者", "还是"])
EXPONENT = re.compile(r"[-+]?\d{1,20}(?:\.\d{1,20})?e[-+]?\d{1,3}", re.IGNORECASE)  # 1e3, which GAIA's own rule reads
IS_HAN = re.compile(rf"[{HAN}]")


def short(answer: str, gold: str) -> float:
    """1.0 where `answer` says `gold`, by the kind of thing that `gold` is."""
    if exact(answer, gold):
        return 1.0
    if read_quantity(gold) is not None:
        return numeric(answer, gold)
    if (date := read_date(gold)) is not None:
        return float(same_date(answer, date))
    return float(says(answer, gold))


def says(answer: str, gold: str) -> bool:
    """Whether the words of `gold` stand in `answer` in a row, with no negation beside them and no hedge anywhere.

    Chinese has no marks between words: there `gold` has to be three characters long, or most of the answer (王 is not 王建华).
    """
    wanted, given = tokens(gold), tokens(answer)
    if not wanted or (len(wanted) < 3 and IS_HAN.search(gold) and 2 * len(wanted) <= len(given)):
        return False
    if set(wanted) & set(CLOSED):  # yes and no is neither
        return given[: len(wanted)] == wanted and len(set(given) & set(CLOSED)) == 1
    if HEDGES & set(given) - set(wanted):
        return False
    places = [at for at in range(len(given) - len(wanted) + 1) if given[at : at + len(wanted)] == wanted]
    return bool(places) and not any(_denied(given, at, at + len(wanted)) for at in places)


def _denied(given: list[str], start: int, end: int) -> bool:
    before = start > 0 and given[start - 1] in NEGATIONS
    return before or any(tuple(given[end : end + len(each)]) == each for each in DENIED)


def gaia(answer: str, gold: str) -> float:
    """GAIA's rule (arXiv 2311.12983): a number exactly, a comma separated list item by item, else text without spaces and marks."""
    if (wanted := gaia_number(gold)) is not None:
        return float(gaia_number(answer) == wanted)
    if re.search("[,;]", gold):
        golds, given = (re.split("[,;]", text) for text in (gold, answer))
        return float(len(golds) == len(given) and all(map(_same_item, given, golds)))
    return float(_bare(answer) == _bare(gold))


def gaia_number(text: str) -> Fraction | None:
    """The number in `text` without $, % and thousands separators, None where it is none."""
    plain = re.sub("[$%,]", "", text).strip()
    return Fraction(plain) if EXPONENT.fullmatch(plain) else read_number(plain)


def _same_item(answer: str, gold: str) -> bool:
    wanted = gaia_number(gold)
    return gaia_number(answer) == wanted if wanted is not None else _bare(answer, "") == _bare(gold, "")


def _bare(text: str, marks: str = string.punctuation) -> str:
    """Lower case, without spaces and `marks`."""
    return "".join(each for each in text.casefold() if not each.isspace() and each not in marks)
