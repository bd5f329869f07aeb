"""Short answers of benchmarks: a number as a number, a date as a date, a list as GAIA compares it, everything else as a phrase.

Deliberately strict: a sentence that hedges, denies, or names two things, is not right. A judge is kinder. Refuses to know formulas.
"""

import re
import string
from fractions import Fraction

from arpo.answer_text import CLOSED, IS_HAN, exact, tokens
from arpo.rewards.dates import read_date, same_date
from arpo.rewards.numbers import read_number
from arpo.rewards.quantities import agree, numeric, read_quantity

NEGATIONS = frozenset(["not", "no", "never", "nor", "non", "isnt", "wasnt", "arent", "cannot", "不", "非", "没", "无", "未"])
DENIED = (("is", "not"), ("was", "not"), ("are", "not"), ("isnt",), ("wasnt",), ("arent",))  # after it: "Lima is not the capital"
# anywhere before it: "I could not verify that it was Lima", "all but Lima"
EXCLUDES = re.compile(
    r"\b(?:not|never|isnt|wasnt|arent|werent|cannot|cant|couldnt|didnt|doesnt|dont|neither|except|excluding|unlike|unable|"
    r"(?:other|rather) than|(?:instead|regardless) of|apart from|before|after) |不 是|并 非|没 有|无 法|不 能|除 了"
)
INSTEAD = re.compile(r"\b(?:but|rather(?! than)|instead(?! of)) |而 是")  # "not Lima but Cusco"
HEDGES = frozenset(["or", "either", "whether", "maybe", "或", "或者", "还是"])
AND = frozenset(["and", "和", "与", "及"])  # beside it: several things are named
ANOTHER = re.compile(r"new|(?:north|south|east|west|north(?:ea|we)st|south(?:ea|we)st)(?:ern)?")
KINDS = re.compile(r"city|town|village|states?|republic|kingdom|island|province|county|district|region|country|name")
AFFIXES = frozenset("市省县区州镇乡村站")  # 长沙市 is 长沙, 李明博 is not 李明
EXPONENT = re.compile(r"[-+]?\d{1,20}(?:\.\d{1,20})?e[-+]?\d{1,3}", re.IGNORECASE)  # 1e3, which GAIA's own rule reads


def short(answer: str, gold: str) -> float:
    """1.0 where `answer` says `gold`, by the kind of thing that `gold` is."""
    if (wanted := read_quantity(gold)) is not None and (given := read_quantity(answer)) is not None:
        return float(agree(given, wanted))
    if exact(answer, gold):
        return 1.0
    if wanted is not None:
        return numeric(answer, gold)
    if (date := read_date(gold)) is not None:
        return float(same_date(answer, date) and not _excluded(tokens(answer)))
    return float(says(answer, gold))


def says(answer: str, gold: str) -> bool:
    """Whether the words of `gold` stand in `answer` in a row, as a name of their own, neither denied nor beside another thing.

    Chinese has no marks between words: there a gold of one or two characters has to be all that is said (王 is not 王建华).
    """
    wanted, given = tokens(gold), tokens(answer)
    if not wanted or (len(wanted) < 3 and IS_HAN.search(gold) and not _all_that_is_said(given, wanted)):
        return False
    if set(wanted) & set(CLOSED):  # yes and no is neither
        return given[: len(wanted)] == wanted and len(set(given) & set(CLOSED)) == 1
    if HEDGES & set(given) - set(wanted):
        return False
    places = [at for at in range(len(given) - len(wanted) + 1) if given[at : at + len(wanted)] == wanted]
    whole = [at for at in places if not _part_of_a_name(given, at)]
    return bool(whole) and not _excluded(given[: places[-1]]) and not any(_denied(given, at, at + len(wanted)) for at in places)


def _all_that_is_said(given: list[str], wanted: list[str]) -> bool:
    """北京, 北京市, 答案是北京."""
    if given[-1:] and given[-1] in AFFIXES and given[-1] != wanted[-1]:
        given = given[:-1]
    before, last = given[: -len(wanted)], given[-len(wanted) :]
    return last == wanted and (not before or before[-1] in ("是", "为", "案", "在"))


def _part_of_a_name(given: list[str], start: int) -> bool:
    """New Mexico is not Mexico, nor the University of York York; the city of York is."""
    if start and ANOTHER.fullmatch(given[start - 1]):
        return True
    return start > 1 and given[start - 1] == "of" and not KINDS.fullmatch(given[start - 2])


def _denied(given: list[str], start: int, end: int) -> bool:
    if start and given[start - 1] in NEGATIONS:
        return True
    if AND & {*given[max(start - 1, 0) : start], *given[end : end + 1]}:
        return True
    return any(tuple(given[end : end + len(each)]) == each for each in DENIED)


def _excluded(words: list[str]) -> bool:
    """Whether what comes after `words` is denied by them."""
    said = "".join(f"{word} " for word in words)
    ends = [found.end() for found in EXCLUDES.finditer(said)]
    return bool(ends) and not INSTEAD.search(said, ends[-1])


def gaia(answer: str, gold: str) -> float:
    """GAIA's rule (arXiv 2311.12983): a number exactly, a comma separated list item by item, else text without spaces and marks."""
    wanted = gaia_number(gold)
    if wanted is not None and ("," not in gold or gaia_number(answer) == wanted):  # 132,133,134 may be a list
        return float(gaia_number(answer) == wanted)
    if re.search("[,;]", gold):
        golds, given = (re.split("[,;]", text) for text in (gold, answer))
        return float(len(golds) == len(given) and all(map(_same_item, given, golds)))
    bare = _bare(gold)
    return float(_bare(answer) == bare if bare else answer.strip() == gold.strip())


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
