r"""Formulas as people and programs type them, in TeX's spelling: `x²`, `√2`, `½`, `5×10³`, `x**2`, `10^-3`, `1e-05`.

Knows signs. Refuses to know what a formula is worth.
"""

import re
import unicodedata
from fractions import Fraction

POWERS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
RAISED = re.compile(f"[{''.join(POWERS)}]+")
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))")
VULGAR = re.compile(r"(\d?)\s*([¼-¾⅐-⅞])")
SIGNS = {"−": "-", "–": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ",
         "π": r"\pi ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ", "θ": r"\theta "}  # fmt: skip
IN_TEX = str.maketrans(SIGNS)
EXPONENT = re.compile(r"([-+]?\d{1,20}(?:\.\d{1,20})?)e([-+]?\d{1,3})", re.IGNORECASE)
REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\overline\s*\{\s*(\d+)\s*\}")


def in_tex(text: str) -> str:
    """`text` with such signs as TeX writes them."""
    if not text.isascii():
        text = RAISED.sub(lambda found: "^{" + "".join(POWERS[each] for each in found[0]) + "}", text)
        text = VULGAR.sub(_vulgar, text)
        text = ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text).translate(IN_TEX)
    text = re.sub(r"\*\*(?=\s*[\w({-])", "^", text)
    text = re.sub(r"\^\s*(-\s*\d+)", r"^{\1}", text)
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)
    return _exactly(text) or text


def _vulgar(found: re.Match[str]) -> str:
    above, below = unicodedata.normalize("NFKC", found[2]).split("⁄")
    return rf"{found[1]}\frac{{{above}}}{{{below}}}"


def _exactly(text: str) -> str | None:
    """A number with an exponent, or with repeating digits, as a plain number or fraction; None for everything else."""
    if found := EXPONENT.fullmatch(text.strip()):
        value = Fraction(f"{found[1]}e{found[2]}")
    elif found := REPEATING.fullmatch(text.strip().strip("$")):
        sign, whole, fixed, again = found.groups()
        if len(again) + len(fixed) > 40:
            return None
        nines = 10 ** len(fixed) * (10 ** len(again) - 1)
        value = int(whole or 0) + Fraction(int(fixed + again) - int(fixed or 0), nines)
        value = -value if sign == "-" else value
    else:
        return None
    return str(value)
