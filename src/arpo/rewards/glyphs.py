r"""Rewrites formulas that people and programs type in TeX: `x²`, `√2`, `½`, `5×10³`, `x**2`, `10^-3`, `1e-05`.

Knows symbols. Refuses to know the value of a formula.
"""

import re
import unicodedata
from fractions import Fraction

POWERS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
RAISED = re.compile(f"[{''.join(POWERS)}]+")
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))")
VULGAR = re.compile(r"(\d?)\s*([¼-¾⅐-⅞])")
SIGNS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "÷": "/",
    "·": r"\cdot ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∞": r"\infty ",
    "π": r"\pi ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∅": r"\emptyset ",
    "θ": r"\theta ",
}
IN_TEX = str.maketrans(SIGNS)
EXPONENT = re.compile(r"([-+]?\d{1,20}(?:\.\d{1,20})?)e([-+]?\d{1,3})", re.IGNORECASE)
REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\overline\s*\{\s*(\d+)\s*\}")


def in_tex(text: str) -> str:
    """`text` with these symbols in TeX."""
    if not text.isascii():
        text = RAISED.sub(lambda match: "^{" + "".join(POWERS[digit] for digit in match[0]) + "}", text)
        text = VULGAR.sub(_vulgar, text)
        text = ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text).translate(IN_TEX)
    text = re.sub(r"\*\*(?=\s*[\w({-])", "^", text)
    text = re.sub(r"\^\s*(-\s*\d+)", r"^{\1}", text)
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)
    return _exactly(text) or text


def _vulgar(match: re.Match[str]) -> str:
    numerator, denominator = unicodedata.normalize("NFKC", match[2]).split("⁄")
    return rf"{match[1]}\frac{{{numerator}}}{{{denominator}}}"


def _exactly(text: str) -> str | None:
    """A number with an exponent or with repeating digits, as an integer or a fraction; None for everything else."""
    if match := EXPONENT.fullmatch(text.strip()):
        value = Fraction(f"{match[1]}e{match[2]}")
    elif match := REPEATING.fullmatch(text.strip().strip("$")):
        sign, whole, fixed, repeating = match.groups()
        if len(repeating) + len(fixed) > 40:
            return None
        nines = 10 ** len(fixed) * (10 ** len(repeating) - 1)
        value = int(whole or 0) + Fraction(int(fixed + repeating) - int(fixed or 0), nines)
        value = -value if sign == "-" else value
    else:
        return None
    return str(value)
