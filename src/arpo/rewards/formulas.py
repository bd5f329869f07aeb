r"""One spelling for formulas: boxes, dollars, spacing, units and degrees off, `\dfrac` as `\frac`, `70 000` as a number.

What can be decided without algebra is decided here: numbers, numbers with a base, words. Refuses to know algebra: `maths` does.
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
UNIT_IN_TEXT = re.compile(r"(?<=[\d}])\s*\\(?:text|mbox|mathrm|textrm)\s*\{\s*[^{}\d]*\}\s*(?:\^\s*\{?\s*[23]\s*\}?)?\s*\.?$")
DEGREES = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b)(?:\s*[CF]$)?|\bdegrees?$")
COUNTED = re.compile(rf"(?P<value>.*\d)\s*(?P<unit>(?:(?![十百千万亿])[{HAN}]){{1,3}})")  # 42个
BESIDE = re.compile(r"(?<![_\d])\d+\s+\d")  # two numbers without anything between them
UNIT = re.compile(r"(?P<value>.*[\d}])\s+(?P<unit>[A-Za-z]{2,}(?:[ /][A-Za-z]+)*(?:\^\{?[23]\}?)?)\.?")
SHORT_UNIT = re.compile(r".*[\d}]\s+(?P<unit>[A-Za-z])\.?")  # \text{ m}
WARMTH = re.compile(r".*(?:\\circ|°|\\degree)[\s}]*(?P<unit>[CF])[\s}]*\.?")
DOLLARS = re.compile(r"(?:\\\$|\$(?=\d[^$]*$)).*")
NO_UNIT = frozenset(
    (
        *("or", "and", "to", "if", "for", "mod", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "pi", "sqrt", "exp"),
        *("hundred", "thousand", "million", "billion", "trillion", "dozen"),
    )
)
CHANGES = NO_UNIT | {  # the number: 5 less than ten
    *("of", "out", "than", "less", "more", "fewer", "times", "plus", "minus", "squared", "cubed", "not", "but", "as", "is", "are")
}
SPACED = re.compile(r"[-+]?\d{1,3}(?:\s\d{3})+(?:\.\d+)?")  # 70 000
MIXED = re.compile(r"(-?)\s*(\d+)\s*\\frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?|(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
NAMED = re.compile(r"[A-Za-z](?:\([A-Za-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?P<value>[^=]+)")  # x = 5, f(x) = ..., x \in [-2, 7]
WORDS = re.compile(r"\(?[^\W\d_]+(?:[ '-][^\W\d_]+)*\)?")  # Evelyn, (C)
PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|sqrt|mod)\b)[A-Za-z]{2,}\s+[A-Za-z]{2,}")
LANGUAGE = re.compile(rf"(?!(?:sqrt|infty|frac|cdot)\b)[^\W\d_]{{4,}}|[{HAN}]")  # products of letters are shorter
OPERATORS = re.compile(r"[\\=^_{}<>+*|]")
LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result|value)\s*(?:is|:|=)|it\s+is|答案[是为]?)"
    r"\s*[:：]?\s*(?P<rest>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
PLAIN = (
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])"), ""),
    (re.compile(r",\s*\\!\s*"), ""),  # a thousands separator as TeX sets it well
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
    """A formula in one spelling; `prose` where it is a sentence that may hold one."""

    text: str
    prose: bool = False
    unit: str = ""  # that stood after it, where it is a known one


def formula(text: str) -> Formula:
    """The formula that an answer is."""
    plain = text.translate(FULL_WIDTH).strip()
    inner = boxed(plain)
    plain = plain if inner is None else inner
    plain = led["rest"] if (led := LEAD.fullmatch(plain)) else plain
    for start, end in FRAMES:
        if plain.startswith(start) and plain.endswith(end) and len(plain) > len(start + end):
            middle = plain[len(start) : -len(end)]
            plain = middle.strip() if start not in middle else plain
    plain = in_tex(plain)
    plain = plain.rstrip(".。") if re.search(r"[^.]\.$|。$", plain) else plain
    if PROSE.search(TEXT.sub("", plain)) and re.search(r"[\d\\$]", plain):
        return _counted(plain) or Formula(text=plain, prose=True)
    measured = _unit_of(plain)
    for pattern, by in PLAIN:
        plain = pattern.sub(by, plain)
    bare = DEGREES.sub("", UNIT_IN_TEXT.sub("", plain)).strip()
    bare = TEXT.sub(lambda found: found[1], bare).strip() if WORDS.fullmatch(TEXT.sub(r"\1", bare).strip()) else bare
    return Formula(_without_unit(bare), unit=measured or _unit_of(plain))


def decide(answer: str, gold: str) -> bool | None:
    """Whether two answers are equal where that needs no algebra: equal text, numbers, words; None otherwise."""
    left, right = formula(answer), formula(gold)
    if not left.text or not right.text:
        return False
    if left.prose:
        return _in_prose(left.text, right.text)
    if left.unit and right.unit and left.unit != right.unit:
        return False  # 12 minutes are not 12 hours; none is converted
    one, other = left.text, right.text
    if _close(one) == _close(other):
        return True
    if (based := BASED.fullmatch(_close(other))) or BASED.fullmatch(_close(one)):
        return _same_base(_close(one), _close(other)) if based else False
    if _only_one_named(one, other):
        one, other = _unnamed(one), _unnamed(other)
        if _close(one) == _close(other):
            return True
    if (numbers := _numbers(one, other)) is not None:
        return numbers
    for number, text in ((one, other), (other, one)):
        if read_number(_close(number)) is not None and not re.search(r"[\d\\]", text):
            return False  # words and letters are no number
    if BESIDE.search(one) and not re.search(r"\\[a-z]+\s*\d+\s+\d", one) and not MIXED.fullmatch(one):
        return False
    words = WORDS.fullmatch(one) and WORDS.fullmatch(other) and max(len(one), len(other)) > 1
    if words or _is_language(one) or _is_language(other):
        return bool(exact(one.strip("()"), other.strip("()")))
    return None


def _in_prose(text: str, gold: str) -> bool | None:
    """A sentence against a number is decided by the only number in it, and against words as text."""
    if _is_language(gold):
        return bool(exact(text, gold))
    if (wanted := read_number(_close(gold))) is None or "\\" in text:
        return None
    found = {read_number(number) for number in re.findall(NUMBER, text)}
    return len(found) == 1 and wanted in found


def _is_language(text: str) -> bool:
    """Whether `text` is words, and nothing in it is for algebra."""
    return LANGUAGE.search(text) is not None and OPERATORS.search(text) is None


def for_algebra(text: str, other: str) -> str:
    """`text` as math-verify should read it beside `other`."""
    mine, theirs = formula(text), formula(other)
    if mine.prose:
        return mine.text
    named = bool(NAMED.fullmatch(mine.text)) and _only_one_named(mine.text, theirs.text)
    return f"${_unnamed(mine.text) if named else mine.text}$"


def _close(text: str) -> str:
    """Without spaces, but between digits."""
    text = re.sub(r"\s", "", text) if SPACED.fullmatch(text) else text
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


def _numbers(one: str, other: str) -> bool | None:
    left, right = (_mixed(text) for text in (one, other))
    if left is not None and right is not None:
        return left == right
    if left is None and right is None:
        return compare(_close(one), _close(other))
    value, text = (left, other) if left is not None else (right, one)
    number = read_number(_close(text))
    return None if number is None else number == value


def _mixed(text: str) -> Fraction | None:
    found = MIXED.fullmatch(text)
    if found is None:
        return None
    sign, whole, above, below = found.groups()[:4] if found[2] else found.groups()[4:]
    if int(below) == 0:
        return None
    value = int(whole) + Fraction(int(above), int(below))
    return -value if sign else value


def _same_base(one: str, other: str) -> bool:
    """Numbers with a base: the same digits, and the same base where both say one."""
    left, right = (BASED.fullmatch(text) for text in (one, other))
    if left and right:
        return left.groups() == right.groups()
    digits = one if left is None else left[1]
    return digits == (other if right is None else right[1])


def _only_one_named(one: str, other: str) -> bool:
    """Whether one is `x = 5` and the other a 5. Beside an equation (2x - y = 3) the name says something."""
    return bool(NAMED.fullmatch(one)) != bool(NAMED.fullmatch(other)) and not ("=" in one and "=" in other)


def _unnamed(text: str) -> str:
    found = NAMED.fullmatch(text)
    return found["value"].strip() if found else text


def _unit_of(text: str) -> str:
    """The unit of a number, "" where it is none of the usual ones."""
    plain = TEXT.sub(r" \1", text).strip()
    if warmth := WARMTH.fullmatch(plain):
        return f"°{warmth['unit']}"
    if DOLLARS.fullmatch(plain):
        return unit("$")
    found = UNIT.fullmatch(plain) or COUNTED.fullmatch(plain) or (SHORT_UNIT.fullmatch(plain) if plain != text.strip() else None)
    name = unit(found["unit"]) if found else ""
    return name if name in KNOWN else ""


def _without_unit(text: str) -> str:
    if counted := COUNTED.fullmatch(text):
        return counted["value"].strip()
    found = UNIT.fullmatch(text)
    if found is None or set(re.findall("[A-Za-z]+", found["unit"])) & NO_UNIT or "\\text" in found["value"]:
        return text
    return found["value"].strip()


def _counted(text: str) -> Formula | None:
    """A number and words: `5 square inches` is 5, `5 million dollars` is left as it is. None for every other sentence."""
    found = UNIT.fullmatch(text)
    if found is None or read_number(found["value"]) is None:
        return None
    if set(found["unit"].casefold().split()) & CHANGES:
        return Formula(text=text)
    return Formula(text=found["value"], unit=unit(found["unit"]))
