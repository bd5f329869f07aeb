"""Words beside a number in an answer of mathematics: units, things that are counted, scales, spelled numbers.

Units are not converted. A word that is in no list and no plural is not read, because it may change the number
(`42 squared`, `42 less`).
"""

from fractions import Fraction
from types import MappingProxyType

from arpo.answer_text import vocabulary
from arpo.rewards.quantities import COUNTERS, SCALES, UNITS, WORD_VALUES

LETTER_UNITS = MappingProxyType(
    {name: name.casefold() for name in ("m", "g", "s", "h", "l", "L", "V", "A", "W", "N", "J", "K")}
)
MORE_UNITS = MappingProxyType(
    {
        form: forms.split()[0]
        for forms in (
            "in inch inches",
            "yd yard yards",
            "lb lbs",
            "oz ounce ounces",
            "l liter litre liters litres",
            "ml milliliter millilitre milliliters millilitres",
            "mg milligram milligrams",
            "mi/h mph",
            "km/h kph",
            "° degree degrees deg",
            "rad radian radians",
            "hz hertz",
            "am",
            "pm",
            "n newton newtons",
            "j joule joules",
            "w watt watts",
            "v volt volts",
            "a ampere amperes amps",
            "c celsius",
            "f fahrenheit",
            "unit units",
            "usd bucks",
        )
        for form in forms.split()
    }
)
NO_UNITS = frozenset(("times", "x", "bc", "bce", "b.c", "b.c.e", "ad", "ce", "a.d", "c.e", "倍", "次"))
UNIT_NAMES = MappingProxyType({form: name for form, name in {**UNITS, **MORE_UNITS}.items() if form not in NO_UNITS})
POWERS = MappingProxyType({"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3})
COUNTED = vocabulary("""people men women children way person apple mice feet fish sheep point unit""")
NO_THINGS = vocabulary(
    """less plus minus times thus this its his hers ours theirs yours has was is does as us yes besides perhaps always
    sometimes unless versus across towards afterwards halves thirds quarters fifths sixths sevenths eighths
    ninths tenths hundredths thousandths millionths hundreds thousands millions billions dozens scores pairs
    squares cubes powers roots factors multiples negatives inverses reciprocals doubles triples twos threes
    fours fives sixes tens percents minuses pluses digits logs logarithms factorials guess guesses others else
    more bases modulus"""
)
WORD_SCALES = MappingProxyType(
    {
        **{name: Fraction(10) ** power for name, power in SCALES.items()},
        "dozen": Fraction(12),
    }
)
FRACTIONS = MappingProxyType(
    {
        "half": 2,
        "third": 3,
        "quarter": 4,
        "fourth": 4,
        "fifth": 5,
        "sixth": 6,
        "seventh": 7,
        "eighth": 8,
        "ninth": 9,
        "tenth": 10,
        "twelfth": 12,
        "halves": 2,
        "thirds": 3,
        "quarters": 4,
        "fourths": 4,
        "fifths": 5,
        "sixths": 6,
        "sevenths": 7,
        "eighths": 8,
        "ninths": 9,
        "tenths": 10,
        "twelfths": 12,
    }
)
LEADS = vocabulary(
    """the a an answer final correct value result is are it we get have obtain find so thus hence therefore then that
    there area volume length total probability perimeter number solution 答案 答案是 答案为 是"""
)
CONNECTORS = frozenset(("and", "or", "equals", "per", "mod", "percent", "pct", "to", "of", "in", "for", "if", "not"))
"""Words of up to three letters, which are no products of letters, and all others that the grammar knows."""
WORDS = frozenset(
    {
        *(name for name in UNIT_NAMES if len(name) > 1),
        *(LEADS - {"a"}),
        *CONNECTORS,
        *WORD_VALUES,
        *WORD_SCALES,
        *("all", "no", "yes", "odd", "even", "but", "off", "up", "by", "at", "be", "both", "any"),
        *("bn", "red", "now", "was", "its", "can", "may", "one", "two", "six", "ten"),
    }
)


def unit_name(word: str, *, letter: bool = False) -> str | None:
    """The unit or the counted thing in one spelling, "" for a Chinese counter; None for another word."""
    if letter:
        return LETTER_UNITS.get(word)
    if word in UNIT_NAMES:
        return UNIT_NAMES[word]
    if word in COUNTERS:
        return ""
    if word in COUNTED:
        return word.removesuffix("s")
    plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "ths", "'s"))
    return word.removesuffix("s") if plural and word.isascii() and word.isalpha() and word not in NO_THINGS else None


def spelled(words: list[str]) -> tuple[Fraction, int] | None:
    """The number that the first words spell, and how many they are: `one hundred and five`, `two thirds`; None if the
    first one is no number word."""
    total, part, at = Fraction(0), None, 0
    if words[:2] == ["half", "dozen"]:
        return Fraction(1, 2), 1
    if words[:1] == ["half"] and len(words) == 1:
        return Fraction(1, 2), 1
    while at < len(words):
        word = words[at]
        if word in WORD_VALUES:
            value = WORD_VALUES[word]
            if (
                part is not None
                and (part % 100 if value < 100 else True)
                and not (part % 10 == 0 and part % 100 >= 20 and value < 10)
            ):
                return None
            part = Fraction(value) if part is None else part + value
        elif word == "hundred" and part is not None and part < 100:
            part *= 100
        elif word in ("thousand", "million", "billion", "trillion") and part is not None:
            total, part = total + part * WORD_SCALES[word], Fraction(0)
        elif (
            word == "and"
            and part is not None
            and words[at + 1 : at + 2]
            and words[at + 1] in WORD_VALUES
            and (part == 0 or part % 100 == 0)
            and (part or total)
        ):
            pass
        elif word in FRACTIONS and part is not None and not total:
            return part / FRACTIONS[word], at + 1
        else:
            break
        at += 1
    return None if part is None else (total + part, at)
