"""Compares short answers of benchmarks: numbers as numbers, dates as dates, lists as GAIA does, everything else as
phrases.

Deliberately strict: a sentence that hedges, denies, or names two things is wrong. A judge is more lenient. Refuses to
know formulas.
"""

import re
import string
from fractions import Fraction

from arpo.answer_text import CLOSED, IS_HAN, exact, tokens, vocabulary
from arpo.rewards.dates import read_date, same_date
from arpo.rewards.denials import LIMIT_MARKS, asserted, refuses
from arpo.rewards.numbers import read_number
from arpo.rewards.quantities import numeric, read_quantity

OUTSIDE_NAME = vocabulary(
    """university college school institute academy airport station street road avenue bridge river lake bay island
    islands mountain mount valley beach park garden square county district province museum gallery hotel
    hospital church cathedral castle palace tower stadium fc cf united rovers wanderers club company corporation
    corp inc ltd bank press times post herald award prize medal cup trophy open festival orchestra symphony war
    battle treaty agreement convention act railway line jr junior ii iii iv"""
)
COUNTRIES = vocabulary(
    """afghanistan albania algeria angola argentina armenia austria azerbaijan bangladesh belarus belgium bolivia
    brazil bulgaria cambodia cameroon chile china colombia croatia cuba cyprus denmark ecuador egypt england
    estonia ethiopia finland france germany ghana greece guatemala haiti honduras hungary iceland india
    indonesia iran iraq ireland israel italy jamaica japan jordan kazakhstan kenya kuwait laos latvia lebanon
    libya lithuania luxembourg madagascar malaysia mali malta mexico monaco mongolia morocco mozambique myanmar
    namibia nepal netherlands nicaragua niger nigeria norway oman pakistan panama paraguay peru philippines
    poland portugal qatar romania russia rwanda scotland senegal serbia singapore slovakia slovenia somalia
    spain sudan sweden switzerland syria taiwan tanzania thailand tunisia turkey uganda ukraine uruguay
    uzbekistan venezuela vietnam wales yemen zambia zimbabwe"""
)  # Paris, France is Paris; Lima, Ohio is not Lima
ANOTHER_NAME = re.compile(r"(?:\s*,?\s+(?=[^\W\d_a-z])|,(?=[^\W\d_a-z])|\s*[/|&;]\s*(?=\w))(?P<name>\w+)?")
AND = frozenset(["and", "和", "与", "及"])  # next to the gold: the answer names several things
NAME_PREFIX = re.compile(r"new|(?:north|south|east|west|north(?:ea|we)st|south(?:ea|we)st)(?:ern)?")
KINDS = re.compile(r"city|town|village|states?|republic|kingdom|island|province|county|district|region|country|name")
AFFIXES = frozenset("市省县区州镇乡村站")  # 长沙市 is 长沙, 李明博 is not 李明
EXPONENT = re.compile(r"[-+]?\d{1,20}(?:\.\d{1,20})?e[-+]?\d{1,3}", re.IGNORECASE)  # 1e3, which GAIA's rule reads


def short(answer: str, gold: str) -> float:
    """1.0 if `answer` states `gold`. The kind of the gold selects the comparison."""
    is_number = read_quantity(gold) is not None
    if is_number and (numeric(answer, gold) or read_quantity(answer) is not None):
        return numeric(answer, gold)
    if exact(answer, gold) and not LIMIT_MARKS.search(answer):
        return 1.0
    if is_number:
        return 0.0
    if (date := read_date(gold)) is not None:
        return float(same_date(asserted(answer), date) and not refuses(tokens(asserted(answer)), asserted(answer)))
    return float(says(answer, gold))


def says(answer: str, gold: str) -> bool:
    """True if `answer` contains the words of `gold` in a row as a separate name, neither denied nor next to another
    one.

    Chinese does not separate words: there a gold of one or two characters must be the whole answer (王 is not 王建华).
    """
    answer = asserted(answer)
    expected, words = tokens(gold), tokens(answer)
    if not expected or (len(expected) < 3 and IS_HAN.search(gold) and not _is_whole_answer(words, expected)):
        return False
    if set(expected) & set(CLOSED):  # "yes and no" is neither
        return words[: len(expected)] == expected and len(set(words) & set(CLOSED)) == 1
    places = [at for at in range(len(words) - len(expected) + 1) if words[at : at + len(expected)] == expected]
    if not any(not _is_part_of_name(words, at, at + len(expected)) for at in places):
        return False
    beside = [*words[: places[-1]], *words[places[-1] + len(expected) :]]
    if refuses(beside, answer.replace(gold, "")) or _names_another(answer, gold):
        return False
    return not any(AND & {*words[max(at - 1, 0) : at], *words[at + len(expected) :][:1]} for at in places)


def _names_another(answer: str, gold: str) -> bool:
    """True for Lima, Ohio, Lima Beach and Lima/Cusco, in which a capital or a mark after the gold makes another name,
    and for Cusco/Lima."""
    at = answer.casefold().find(gold.casefold())
    if at < 0:
        return False
    match = ANOTHER_NAME.match(answer, at + len(gold))
    is_country = (
        match is not None and not re.search("[/|&;]", match[0]) and (match["name"] or "").casefold() in COUNTRIES
    )
    return (match is not None and not is_country) or re.search(r"\w\s*[/|&]\s*$", answer[:at]) is not None


def _is_whole_answer(words: list[str], expected: list[str]) -> bool:
    """True for 北京, 北京市, 答案是北京."""
    if words[-1:] and words[-1] in AFFIXES and words[-1] != expected[-1]:
        words = words[:-1]
    before, last = words[: -len(expected)], words[-len(expected) :]
    return last == expected and (not before or before[-1] in ("是", "为", "案", "在"))


def _is_part_of_name(words: list[str], start: int, end: int) -> bool:
    """True for Mexico in New Mexico and York in the University of York and York University, but not in the city of
    York."""
    if words[end : end + 1] and words[end] in OUTSIDE_NAME:
        return True
    if start and NAME_PREFIX.fullmatch(words[start - 1]):
        return True
    return start > 1 and words[start - 1] == "of" and not KINDS.fullmatch(words[start - 2])


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
