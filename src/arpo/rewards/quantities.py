"""Compares numbers with units, up to a tolerance: `161.27元`, `$3.5 million`, `4.04%`, `二十三个`, `twelve years`.

A unit that is missing on one side matches any unit. Two different units never match, and units are not converted. Whole
numbers must be exactly equal. Refuses to know formulas.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from arpo.answer_text import FULL_WIDTH, HAN, tokens
from arpo.rewards.denials import asserted, refuses
from arpo.rewards.numbers import DECIMAL, read_number

TOLERANCE = Fraction(1, 1000)  # relative; for pairs with at least one number that is not whole
POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:[x×*]|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?\d{1,3})\s*\}?")
SPACED = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d])")  # 1 000 000
SHORT_SCALE = re.compile(  # $3M, 42k; but 3 m is a length
    r"((?:US\$|[$€£])\s?\d[\d,.]{0,60})\s?([kKmMbB])n?\b|(?<![\w.])(\d[\d,.]{0,60})([kKM])\b"
)
SHORT_SCALES = MappingProxyType({"k": "thousand", "m": "million", "b": "billion"})
NUMBERED = re.compile(r"\bNo\.?\s*(?=\d)|#\s*(?=\d)")  # No. 5
BOUND = re.compile(r"\b(?:by|to)\s+(?=\d)", re.IGNORECASE)  # a bound beside a number, not beside a name
DECADE = re.compile(r"\d{2,3}0['’]?s|\d{4}['’]?s")  # the 1990s are neither a year nor seconds
# part of a number as a sign is (44 BC is no 44), so that they cannot be left off as a unit can
CHANGING = frozenset(("bc", "ish", "odd", "too", "percentile"))
ABOUT = r"(?:about|around|approximately|approx\.?|roughly|~|≈|约为|大约|大概|约|共)"
CURRENCY = r"(?:US\$|\$|€|£|¥)"
SCALES = MappingProxyType(
    {
        "hundred": 2,
        "thousand": 3,
        "million": 6,
        "billion": 9,
        "trillion": 12,
        "bn": 9,
        "百": 2,
        "千": 3,
        "万": 4,
        "百万": 6,
        "千万": 7,
        "亿": 8,
    }
    | {"万亿": 12}
)
SCALE = "|".join(sorted(SCALES, key=len, reverse=True))
HAN_NUMBER = "[零〇一二两三四五六七八九十百千万亿]+"
OF_HUNDRED = re.compile(rf"百分之\s*((?:{DECIMAL})|{HAN_NUMBER})")
ONES = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
)
WORDS = (*ONES, *(f"{stem}teen" for stem in ("four", "fif", "six", "seven", "eigh", "nine")))
TENS = {
    word: 10 * at
    for at, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
WORD_VALUES = MappingProxyType(
    {word: at for at, word in enumerate(WORDS)}
    | TENS
    | {f"{ten}{mark}{WORDS[one]}": value + one for ten, value in TENS.items() for one in range(1, 10) for mark in "- "}
)
WORD_NUMBER = "|".join(sorted(WORD_VALUES, key=len, reverse=True))
VALUE = rf"(?P<number>[-+]?\s?(?:{DECIMAL})(?:e[-+]?\d{{1,3}})?)|(?P<han>{HAN_NUMBER})|(?P<word>\b(?:{WORD_NUMBER})\b)"
NUMBERS = re.compile(rf"(?<![.)])(?<![^\W{HAN}]){VALUE}", re.IGNORECASE)
QUANTITY = re.compile(
    rf"{ABOUT}?\s*(?P<sign>[-+]?)(?P<currency>{CURRENCY})?\s*(?:{VALUE})\s*"
    rf"(?P<scale>(?:{SCALE})(?![^\W\d_{HAN}]))?\s*(?P<unit>%|[^\W\d_][^\d,;，；]{{0,40}}|°[CF]?|{CURRENCY})?",
    re.IGNORECASE,
)
# one spelling for the units that occur in answers; Chinese counters mean nothing ("3个" is 3)
UNITS = MappingProxyType(
    {
        form: forms.split()[0]
        for forms in (
            "% percent pct 百分之",
            "km kilometer kilometre kilometers kilometres kms 公里 千米",
            "m meter metre meters metres 米",
            "cm centimeter centimetre centimeters centimetres 厘米",
            "mm millimeter millimetre millimeters millimetres 毫米",
            "ft foot feet 英尺",
            "mi mile miles 英里",
            "kg kilogram kilograms kilos 公斤 千克",
            "g gram grams 克",
            "t ton tons tonne tonnes 吨",
            "yr year years yrs 年 岁",
            "month months 个月 月",
            "week weeks 周 星期",
            "day days 天 日",
            "h hour hours hr hrs 小时 个小时",
            "min minute minutes mins 分钟",
            "s second seconds sec secs 秒 秒钟",
            "cny yuan rmb ¥ 元 人民币 块",
            "usd dollar dollars $ us$ 美元",
            "cent cents ¢ 美分",
            "eur euro euros € 欧元",
            "gbp pound pounds £ 英镑",
            "person people persons 人 名 位",
            "times x 倍 次",
            "bc bce b.c b.c.e",
            "ad ce a.d c.e",
        )
        for form in forms.split()
    }
)
COUNTERS = frozenset(
    [
        "个",
        "只",
        "条",
        "本",
        "首",
        "件",
        "座",
        "艘",
        "辆",
        "集",
        "期",
        "句",
        "部",
        "家",
        "张",
        "层",
        "队",
        "支",
        "种",
        "项",
        "场",
    ]
)

KNOWN = frozenset(("", *UNITS.values()))


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit ("" if it has none)."""

    value: Fraction
    unit: str = ""


def read_quantity(text: str) -> Quantity | None:
    """The quantity, if the whole of `text` is a quantity, else None."""
    normalized = _spelled(text).strip().rstrip(".。!").strip()
    if (number := read_number(normalized)) is not None:
        return Quantity(number)
    if DECADE.fullmatch(normalized):
        return None
    match = QUANTITY.fullmatch(normalized) if len(normalized) <= 80 else None
    if match is None:
        return None
    value, unit_text = _value(match), match["unit"] or match["currency"] or ""
    if value is None or (match["number"] is None and unit(unit_text) not in KNOWN):
        return None  # 五道口 and Five Guys are names
    if match["sign"] == "-":
        value = -value
    value *= 10 ** SCALES[match["scale"].casefold()] if match["scale"] else 1
    return Quantity(value, unit(unit_text))


def _spelled(text: str) -> str:
    """`text` with its numbers in one spelling."""
    normalized = unicodedata.normalize("NFC", text).translate(FULL_WIDTH).replace("−", "-")
    normalized = POWER_OF_TEN.sub(r"e\1", SPACED.sub(lambda match: match[0].replace(" ", ""), normalized))
    normalized = OF_HUNDRED.sub(r"\1%", normalized)
    normalized = re.sub(r"\b(?:minus|negative)\s+(?=\d)", "-", normalized, flags=re.IGNORECASE)
    normalized = NUMBERED.sub("", normalized)
    return SHORT_SCALE.sub(
        lambda match: f"{match[1] or match[3]} {SHORT_SCALES[(match[2] or match[4]).casefold()]}", normalized
    )


def unit(text: str) -> str:
    """A unit in one spelling; "" for a counter."""
    normalized = " ".join(text.casefold().replace("^2", "²").rstrip(".").split())
    if normalized in COUNTERS:
        return ""
    if "/" in normalized and (parts := normalized.split("/"))[0] in UNITS:
        return "/".join(UNITS.get(part, part) for part in parts)
    words = [UNITS.get(word, word.removesuffix("s") if len(word) > 3 else word) for word in normalized.split()]
    return UNITS.get(normalized, " ".join(words))


def agree(left: Quantity, right: Quantity, tolerance: Fraction = TOLERANCE) -> bool:
    """True if two quantities are equal up to the tolerance."""
    units = {left.unit, right.unit} - {""}
    if any("/" in name for name in units) and not all("/" in name for name in units):  # 元 may stand for 元/克
        units = {name.split("/")[0] for name in units}
    if left.unit != right.unit and (len(units) == 2 or not CHANGING.isdisjoint(" ".join(units).split())):
        return False
    if close(left.value, right.value, tolerance):
        return True
    if units == {"%"} and left.unit != right.unit:  # 4.04% is 0.0404
        share, number = (left, right) if left.unit else (right, left)
        return close(share.value / 100, number.value, tolerance)
    return False


def close(left: Fraction, right: Fraction, tolerance: Fraction = TOLERANCE) -> bool:
    """True for equal whole numbers, and for others that differ by at most `tolerance` times the larger and have the
    same sign."""
    if left == right or (left.denominator == right.denominator == 1):
        return left == right
    return left * right > 0 and abs(left - right) <= tolerance * max(abs(left), abs(right))


def numeric(answer: str, gold: str) -> float:
    """1.0 if `answer` is the quantity `gold`, or a text whose only number is that quantity and that neither denies nor
    limits nor changes it."""
    gold_quantity = read_quantity(gold)
    if gold_quantity is None or len(answer) > 2000:
        return 0.0
    answer = BOUND.sub("until ", asserted(answer))
    if answer.strip() != gold.strip() and refuses(set(tokens(_spelled(answer))) - set(tokens(gold)), answer):
        return 0.0
    quantity = read_quantity(answer) or _only_quantity(answer)
    return float(quantity is not None and agree(quantity, gold_quantity))


def _only_quantity(text: str) -> Quantity | None:
    """The quantity in a text with a single number, with the unit or scale that follows it."""
    normalized = _spelled(text)
    numbers = [match for match in NUMBERS.finditer(normalized) if not _is_part_of_name(match)]
    if len(numbers) != 1 or (DECADE.match(normalized, numbers[0].start()) and len(numbers[0][0]) == 4):
        return None
    start = numbers[0].start()
    start -= 1 if normalized[:start].endswith(("$", "€", "£", "¥")) else 0
    for stop in range(min(len(normalized), numbers[0].end() + 20), numbers[0].end() - 1, -1):
        if (quantity := read_quantity(normalized[start:stop])) is not None and quantity.unit in KNOWN:
            return quantity
    return None


def _is_part_of_name(match: re.Match[str]) -> bool:
    """True for short number words and one-character Chinese numerals, rarely numbers: "one of them", "一些"."""
    return match["number"] is None and len(match[0]) < 2 + 2 * (match["word"] is not None)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["number"]:
        digits = re.sub(r"[\s,]", "", match["number"]).casefold()
        return Fraction(digits.removesuffix(".")) if len(digits) <= 60 else None
    if match["word"]:
        return Fraction(WORD_VALUES[" ".join(match["word"].casefold().split())])
    value = han_number(match["han"])
    return None if value is None else Fraction(value)


def han_number(text: str) -> int | None:
    """The value of a Chinese numeral (二十三, 两千零五, 三万, 一九九七), None for other text."""
    digits = {"〇": 0} | {character: at for at, character in enumerate("零一二三四五六七八九")} | {"两": 2}
    if all(character in digits for character in text):
        return int("".join(str(digits[character]) for character in text))
    total = section = digit = 0
    for character in text:
        if character in digits:
            digit = digits[character]
        elif character in "十百千":
            section += (digit or 1) * 10 ** ("十百千".index(character) + 1)
            digit = 0
        elif section + digit + total == 0:
            return None  # 万 and 亿 need a number before them
        else:
            scale = 10_000 if character == "万" else 100_000_000
            total = (total + section + digit) * scale if character == "亿" else total + (section + digit) * scale
            section = digit = 0
    return total + section + digit
