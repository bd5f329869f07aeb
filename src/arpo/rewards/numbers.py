r"""Reads numbers exactly: `-5`, `1,000`, `1.5`, `12/5`, `\frac12`, `\dfrac{1}{2}`, `$5$`. `maths` handles everything
else."""

import re
from fractions import Fraction

DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
NUMBER = re.compile(rf"([-+]?)\s*({DECIMAL})")
RATIO = re.compile(rf"([-+]?)\s*({DECIMAL})\s*/\s*({DECIMAL})")
FRAC = re.compile(r"([-+]?)\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
MAX_DIFFERENCE = Fraction(1, 1000)  # relative; numbers further apart are not equal however their decimals are rounded
MAX_CHARS = 60


def read_number(text: str) -> Fraction | None:
    """The exact value of a number, None for everything else (percentages, units, roots, intervals)."""
    text = text.strip().replace("−", "-").replace("\\!", "").replace("{,}", ",")
    if len(text) >= 2 and text.startswith("$") and text.endswith("$"):
        text = text.strip("$").strip()
    text = text.removesuffix(".") if re.search(r"\d\.$", text) else text
    if len(text) > MAX_CHARS:
        return None
    if match := FRAC.fullmatch(text):
        sign, numerator, numerator_digit, denominator, denominator_digit = match.groups()
        return _ratio(sign, numerator or numerator_digit, denominator or denominator_digit)
    if match := RATIO.fullmatch(text):
        return _ratio(match.group(1), match.group(2), match.group(3))
    if match := NUMBER.fullmatch(text):
        return _ratio(match.group(1), match.group(2), "1")
    return None


def compare(left: str, right: str) -> bool | None:
    """True or False if both are numbers that are clearly equal or different, else None."""
    one, other = read_number(left), read_number(right)
    if one is None or other is None:
        return None
    if one == other:
        return True
    far_apart = abs(one - other) > MAX_DIFFERENCE * max(abs(one), abs(other))
    return False if far_apart or (one.denominator == other.denominator == 1) else None


def _ratio(sign: str, numerator: str, denominator: str) -> Fraction | None:
    bottom = Fraction(denominator.replace(",", "").removesuffix("."))
    if bottom == 0:
        return None
    value = Fraction(numerator.replace(",", "").removesuffix(".")) / bottom
    return -value if sign == "-" else value
