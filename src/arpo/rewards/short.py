"""Compares short answers of benchmarks: numbers as numbers, dates as dates, lists as GAIA does, everything else as
phrases.

Deliberately strict: a sentence that hedges, denies, or names two things is wrong. A judge is more lenient. Refuses to
know formulas.
"""

import re
import string
from fractions import Fraction

from arpo.answer_text import CLOSED, IS_HAN, exact, tokens
from arpo.rewards.dates import read_date, same_date
from arpo.rewards.numbers import read_number
from arpo.rewards.quantities import agree, numeric, read_quantity

NEGATIONS = frozenset(
    ["not", "no", "never", "nor", "non", "isnt", "wasnt", "arent", "cannot", "不", "非", "没", "无", "未"]
)
DENIED = (
    ("is", "not"),
    ("was", "not"),
    ("are", "not"),
    ("isnt",),
    ("wasnt",),
    ("arent",),
)  # after the gold: "Lima is not the capital"
# anywhere before the gold: "I could not verify that it was Lima", "all but Lima"
EXCLUDES = re.compile(
    r"\b(?:not|never|isnt|wasnt|arent|werent|cannot|cant|couldnt|didnt|doesnt|dont|neither|except|excluding|unlike|unable|"
    r"(?:other|rather) than|(?:instead|regardless) of|apart from|before|after) |不 是|并 非|没 有|无 法|不 能|除 了"
)
INSTEAD = re.compile(r"\b(?:but|rather(?! than)|instead(?! of)) |而 是")  # "not Lima but Cusco"
HEDGES = frozenset(["or", "either", "whether", "maybe", "或", "或者", "还是"])
AND = frozenset(["and", "和", "与", "及"])  # next to the gold: the answer names several things
NAME_PREFIX = re.compile(r"new|(?:north|south|east|west|north(?:ea|we)st|south(?:ea|we)st)(?:ern)?")
KINDS = re.compile(r"city|town|village|states?|republic|kingdom|island|province|county|district|region|country|name")
AFFIXES = frozenset("市省县区州镇乡村站")  # 长沙市 is 长沙, 李明博 is not 李明
EXPONENT = re.compile(r"[-+]?\d{1,20}(?:\.\d{1,20})?e[-+]?\d{1,3}", re.IGNORECASE)  # 1e3, which GAIA's rule reads


def short(answer: str, gold: str) -> float:
    """1.0 if `answer` states `gold`. The kind of the gold selects the comparison."""
    if (expected := read_quantity(gold)) is not None and (quantity := read_quantity(answer)) is not None:
        return float(agree(quantity, expected))
    if exact(answer, gold):
        return 1.0
    if expected is not None:
        return numeric(answer, gold)
    if (date := read_date(gold)) is not None:
        return float(same_date(answer, date) and not _excluded(tokens(answer)))
    return float(says(answer, gold))


def says(answer: str, gold: str) -> bool:
    """True if `answer` contains the words of `gold` in a row as a separate name, neither denied nor next to another
    one.

    Chinese does not separate words: there a gold of one or two characters must be the whole answer (王 is not 王建华).
    """
    expected, words = tokens(gold), tokens(answer)
    if not expected or (len(expected) < 3 and IS_HAN.search(gold) and not _is_whole_answer(words, expected)):
        return False
    if set(expected) & set(CLOSED):  # "yes and no" is neither
        return words[: len(expected)] == expected and len(set(words) & set(CLOSED)) == 1
    if HEDGES & set(words) - set(expected):
        return False
    places = [at for at in range(len(words) - len(expected) + 1) if words[at : at + len(expected)] == expected]
    if not any(not _is_part_of_name(words, at) for at in places) or _excluded(words[: places[-1]]):
        return False
    return not any(_denied(words, at, at + len(expected)) for at in places)


def _is_whole_answer(words: list[str], expected: list[str]) -> bool:
    """True for 北京, 北京市, 答案是北京."""
    if words[-1:] and words[-1] in AFFIXES and words[-1] != expected[-1]:
        words = words[:-1]
    before, last = words[: -len(expected)], words[-len(expected) :]
    return last == expected and (not before or before[-1] in ("是", "为", "案", "在"))


def _is_part_of_name(words: list[str], start: int) -> bool:
    """True for Mexico in New Mexico and York in the University of York, but not in the city of York."""
    if start and NAME_PREFIX.fullmatch(words[start - 1]):
        return True
    return start > 1 and words[start - 1] == "of" and not KINDS.fullmatch(words[start - 2])


def _denied(words: list[str], start: int, end: int) -> bool:
    if start and words[start - 1] in NEGATIONS:
        return True
    if AND & {*words[max(start - 1, 0) : start], *words[end : end + 1]}:
        return True
    return any(tuple(words[end : end + len(denial)]) == denial for denial in DENIED)


def _excluded(words: list[str]) -> bool:
    """True if `words` deny or exclude what follows them."""
    text = "".join(f"{word} " for word in words)
    ends = [match.end() for match in EXCLUDES.finditer(text)]
    return bool(ends) and not INSTEAD.search(text, ends[-1])


def gaia(answer: str, gold: str) -> float:
    """GAIA's rule (arXiv 2311.12983): numbers exactly, comma-separated lists item by item, other text without spaces
    and punctuation."""
    number = gaia_number(gold)
    if number is not None and ("," not in gold or gaia_number(answer) == number):  # 132,133,134 may be a list
        return float(gaia_number(answer) == number)
    if re.search("[,;]", gold):
        golds, answers = (re.split("[,;]", text) for text in (gold, answer))
        return float(len(golds) == len(answers) and all(map(_same_item, answers, golds)))
    bare = _bare(gold)
    return float(_bare(answer) == bare if bare else answer.strip() == gold.strip())


def gaia_number(text: str) -> Fraction | None:
    """The number in `text` without $, % and thousands separators, or None."""
    digits = re.sub("[$%,]", "", text).strip()
    return Fraction(digits) if EXPONENT.fullmatch(digits) else read_number(digits)


def _same_item(answer: str, gold: str) -> bool:
    number = gaia_number(gold)
    return gaia_number(answer) == number if number is not None else _bare(answer, "") == _bare(gold, "")


def _bare(text: str, marks: str = string.punctuation) -> str:
    """`text` in lower case without spaces and `marks`."""
    return "".join(char for char in text.casefold() if not char.isspace() and char not in marks)
