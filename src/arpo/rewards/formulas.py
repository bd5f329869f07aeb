r"""Normalises formulas: removes boxes, dollars, spacing, units and degrees, writes `\dfrac` as `\frac` and `70 000` as
a number. Compares what needs no algebra: numbers, numbers with a base, words.

Knows notation. Refuses to know algebra: `maths` does.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from arpo.answer_text import FULL_WIDTH, HAN, NUMBER, exact
from arpo.final_answer import boxed
from arpo.rewards.glyphs import in_tex
from arpo.rewards.numbers import compare, read_number
from arpo.rewards.quantities import KNOWN, unit

FRAMES = (("**", "**"), ("`", "`"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
UNIT_IN_TEXT = re.compile(
    r"(?<=[\d}])\s*\\(?:text|mbox|mathrm|textrm)\s*\{\s*[^{}\d]*\}\s*(?:\^\s*\{?\s*[23]\s*\}?)?\s*\.?$"
)
DEGREES = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b)(?:\s*[CF]$)?|\bdegrees?$")
COUNTED = re.compile(rf"(?P<value>.*\d)\s*(?P<unit>(?:(?![十百千万亿])[{HAN}]){{1,3}})")  # 42个
ADJACENT = re.compile(r"(?<![_\d])\d+\s+\d")  # two numbers with only space between them
UNIT = re.compile(r"(?P<value>.*[\d}])\s+(?P<unit>[A-Za-z]{2,}(?:[ /][A-Za-z]+)*(?:\^\{?[23]\}?)?)\.?")
SHORT_UNIT = re.compile(r".*[\d}]\s+(?P<unit>[A-Za-z])\.?")  # \text{ m}
TEMPERATURE = re.compile(r".*(?:\\circ|°|\\degree)[\s}]*(?P<unit>[CF])[\s}]*\.?")
DOLLARS = re.compile(r"(?:\\\$|\$(?=\d[^$]*$)).*")
NO_UNIT = frozenset(
    (
        *(
            "or",
            "and",
            "to",
            "if",
            "for",
            "mod",
            "sin",
            "cos",
            "tan",
            "cot",
            "sec",
            "csc",
            "log",
            "ln",
            "pi",
            "sqrt",
            "exp",
        ),
        *("hundred", "thousand", "million", "billion", "trillion", "dozen"),
    )
)
CHANGES = NO_UNIT | {  # words that change the number: 5 less than ten
    *(
        "of",
        "out",
        "than",
        "less",
        "more",
        "fewer",
        "times",
        "plus",
        "minus",
        "squared",
        "cubed",
        "not",
        "but",
        "as",
        "is",
        "are",
    )
}
SPACED = re.compile(r"[-+]?\d{1,3}(?:\s\d{3})+(?:\.\d+)?")  # 70 000
MIXED = re.compile(r"(-?)\s*(\d+)\s*\\frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?|(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
NAMED = re.compile(
    r"[A-Za-z](?:\([A-Za-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?P<value>[^=]+)"
)  # x = 5, f(x) = ..., x \in [-2, 7]
WORDS = re.compile(r"\(?[^\W\d_]+(?:[ '-][^\W\d_]+)*\)?")  # Evelyn, (C)
PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|sqrt|mod)\b)[A-Za-z]{2,}\s+[A-Za-z]{2,}")
LANGUAGE = re.compile(rf"(?!(?:sqrt|infty|frac|cdot)\b)[^\W\d_]{{4,}}|[{HAN}]")  # products of letters are shorter
OPERATORS = re.compile(r"[\\=^_{}<>+*|]")
LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result|value)\s*(?:is|:|=)|it\s+is|答案[是为]?)"
    r"\s*[:：]?\s*(?P<rest>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
REWRITES = (
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])"), ""),
    (re.compile(r",\s*\\!\s*"), ""),  # a thousands separator in TeX
    (re.compile(r"(?<=\d)\\[,;: ](?=\d{3})"), ""),
    (re.compile(r"\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\\$|^\$(?=[\d.])"), ""),
    (re.compile(r"\\sqrt\s*(?=\w)"), r"\\sqrt "),
    (re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])(pi|infty)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"(?<![\\A-Za-z])infinity\b"), r"\\infty"),
    (re.compile(r"(?<=[\d)}A-Za-z])\s*\*\s*(?=[\d({\\A-Za-z])"), r" \\cdot "),
)


@dataclass(frozen=True, slots=True)
class Formula:
    """A normalised formula. `prose` marks a sentence that may contain one."""

    text: str
    prose: bool = False
    unit: str = ""  # the unit after it, if it is a known one


def formula(text: str) -> Formula:
    """Normalise an answer that is a formula."""
    tex = text.translate(FULL_WIDTH).strip()
    inner = boxed(tex)
    tex = tex if inner is None else inner
    tex = lead["rest"] if (lead := LEAD.fullmatch(tex)) else tex
    for start, end in FRAMES:
        if tex.startswith(start) and tex.endswith(end) and len(tex) > len(start + end):
            middle = tex[len(start) : -len(end)]
            tex = middle.strip() if start not in middle else tex
    tex = in_tex(tex)
    tex = tex.rstrip(".。") if re.search(r"[^.]\.$|。$", tex) else tex
    if PROSE.search(TEXT.sub("", tex)) and re.search(r"[\d\\$]", tex):
        return _counted(tex) or Formula(text=tex, prose=True)
    known_unit = _unit_of(tex)
    for pattern, replacement in REWRITES:
        tex = pattern.sub(replacement, tex)
    bare = DEGREES.sub("", UNIT_IN_TEXT.sub("", tex)).strip()
    bare = TEXT.sub(lambda match: match[1], bare).strip() if WORDS.fullmatch(TEXT.sub(r"\1", bare).strip()) else bare
    return Formula(_without_unit(bare), unit=known_unit or _unit_of(tex))


def decide(answer: str, gold: str) -> bool | None:
    """True or False if equality needs no algebra (equal text, numbers, words), else None."""
    left, right = formula(answer), formula(gold)
    if not left.text or not right.text:
        return False
    if left.prose:
        return _in_prose(left.text, right.text)
    if left.unit and right.unit and left.unit != right.unit:
        return False  # 12 minutes are not 12 hours; units are not converted
    one, other = left.text, right.text
    if _compact(one) == _compact(other):
        return True
    if (gold_base := BASED.fullmatch(_compact(other))) or BASED.fullmatch(_compact(one)):
        return _same_base(_compact(one), _compact(other)) if gold_base else False
    if _only_one_named(one, other):
        one, other = _unnamed(one), _unnamed(other)
        if _compact(one) == _compact(other):
            return True
    if (equal := _equal_numbers(one, other)) is not None:
        return equal
    for number, text in ((one, other), (other, one)):
        if read_number(_compact(number)) is not None and not re.search(r"[\d\\]", text):
            return False  # words and letters are not a number
    if ADJACENT.search(one) and not re.search(r"\\[a-z]+\s*\d+\s+\d", one) and not MIXED.fullmatch(one):
        return False
    words = WORDS.fullmatch(one) and WORDS.fullmatch(other) and max(len(one), len(other)) > 1
    if words or _is_language(one) or _is_language(other):
        return bool(exact(one.strip("()"), other.strip("()")))
    return None


def _in_prose(text: str, gold: str) -> bool | None:
    """Compare a sentence with a gold: words as text, and a number with the only number in the sentence."""
    if _is_language(gold):
        return bool(exact(text, gold))
    if (gold_number := read_number(_compact(gold))) is None or "\\" in text:
        return None
    return {read_number(number) for number in re.findall(NUMBER, text)} == {gold_number}


def _is_language(text: str) -> bool:
    """True if `text` consists of words and needs no algebra."""
    return LANGUAGE.search(text) is not None and OPERATORS.search(text) is None


def for_algebra(text: str, other: str) -> str:
    """`text` in the form in which math-verify compares it with `other`."""
    left, right = formula(text), formula(other)
    if left.prose:
        return left.text
    named = bool(NAMED.fullmatch(left.text)) and _only_one_named(left.text, right.text)
    return f"${_unnamed(left.text) if named else left.text}$"


def _compact(text: str) -> str:
    """`text` without spaces, except between digits."""
    text = re.sub(r"\s", "", text) if SPACED.fullmatch(text) else text
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


def _equal_numbers(one: str, other: str) -> bool | None:
    left, right = (_mixed(text) for text in (one, other))
    if left is not None and right is not None:
        return left == right
    if left is None and right is None:
        return compare(_compact(one), _compact(other))
    value, text = (left, other) if left is not None else (right, one)
    number = read_number(_compact(text))
    return None if number is None else number == value


def _mixed(text: str) -> Fraction | None:
    match = MIXED.fullmatch(text)
    if match is None:
        return None
    sign, whole, numerator, denominator = match.groups()[:4] if match[2] else match.groups()[4:]
    if int(denominator) == 0:
        return None
    value = int(whole) + Fraction(int(numerator), int(denominator))
    return -value if sign else value


def _same_base(one: str, other: str) -> bool:
    """True for numbers with the same digits, and with the same base if both state one."""
    left, right = (BASED.fullmatch(text) for text in (one, other))
    if left and right:
        return left.groups() == right.groups()
    digits = one if left is None else left[1]
    return digits == (other if right is None else right[1])


def _only_one_named(one: str, other: str) -> bool:
    """True if one is `x = 5` and the other is `5`. Compared with an equation (2x - y = 3), the name matters."""
    return bool(NAMED.fullmatch(one)) != bool(NAMED.fullmatch(other)) and not ("=" in one and "=" in other)


def _unnamed(text: str) -> str:
    match = NAMED.fullmatch(text)
    return match["value"].strip() if match else text


def _unit_of(text: str) -> str:
    """The unit of a number, "" if it is not a known one."""
    tex = TEXT.sub(r" \1", text).strip()
    if match := TEMPERATURE.fullmatch(tex):
        return f"°{match['unit']}"
    if DOLLARS.fullmatch(tex):
        return unit("$")
    match = (
        UNIT.fullmatch(tex) or COUNTED.fullmatch(tex) or (SHORT_UNIT.fullmatch(tex) if tex != text.strip() else None)
    )
    name = unit(match["unit"]) if match else ""
    return name if name in KNOWN else ""


def _without_unit(text: str) -> str:
    if counted := COUNTED.fullmatch(text):
        return counted["value"].strip()
    match = UNIT.fullmatch(text)
    if match is None or set(re.findall("[A-Za-z]+", match["unit"])) & NO_UNIT or "\\text" in match["value"]:
        return text
    return match["value"].strip()


def _counted(text: str) -> Formula | None:
    """A number with words: `5 square inches` is 5, `5 million dollars` stays unchanged. None for any other sentence."""
    match = UNIT.fullmatch(text)
    if match is None or read_number(match["value"]) is None:
        return None
    if set(match["unit"].casefold().split()) & CHANGES:
        return Formula(text=text)
    return Formula(text=match["value"], unit=unit(match["unit"]))
