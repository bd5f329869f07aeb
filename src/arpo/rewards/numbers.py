r"""Plain numbers, read exactly: `-5`, `1,000`, `1.5`, `12/5`, `\frac12`, `\dfrac{1}{2}`, `$5$`. Everything else is for `maths`."""

import re
from fractions import Fraction

PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
NUMBER = re.compile(rf"([-+]?)\s*({PLAIN})")
RATIO = re.compile(rf"([-+]?)\s*({PLAIN})\s*/\s*({PLAIN})")
FRAC = re.compile(r"([-+]?)\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
NEARLY = Fraction(1, 1000)  # relative; further apart than this no reading of decimals makes two numbers equal
MOST_DIGITS = 60


def read_number(text: str) -> Fraction | None:
    """The exact value of a plain number, None for everything else (percentages, units, roots, intervals)."""
    text = text.strip().replace("−", "-").replace("\\!", "").replace("{,}", ",")
    if len(text) >= 2 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$").strip()
    text = text.removesuffix(".") if re.search(r"\d\.$", text) else text
    if len(text) > MOST_DIGITS:
        return None
    if found := FRAC.fullmatch(text):
        sign, above, above_digit, below, below_digit = found.groups()
        return _ratio(sign, above or above_digit, below or below_digit)
    if found := RATIO.fullmatch(text):
        return _ratio(found.group(1), found.group(2), found.group(3))
    if found := NUMBER.fullmatch(text):
        return _ratio(found.group(1), found.group(2), "1")
    return None


def compare(left: str, right: str) -> bool | None:
    """Whether two plain numbers are equal; None where that is not for this file to say."""
    one, other = read_number(left), read_number(right)
    if one is None or other is None:
        return None
    if one == other:
        return True
    return False if abs(one - other) > NEARLY * max(abs(one), abs(other)) or (one.denominator == other.denominator == 1) else None


def _ratio(sign: str, above: str, below: str) -> Fraction | None:
    bottom = Fraction(below.replace(",", "").removesuffix("."))
    if bottom == 0:
        return None
    value = Fraction(above.replace(",", "").removesuffix(".")) / bottom
    return -value if sign == "-" else value
