r"""Splits an answer of mathematics, in TeX or as people type it, into tokens: numbers, letters, words, commands, marks.

`x²`, `√2`, `½`, `x**2`, `0.333...`, `1{,}000`, `\text{ cm}` and full-width forms are read here, so that the grammar
(`terms`, `reader`) sees one notation. Refuses to know what tokens mean together.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from arpo.answer_text import FULL_WIDTH, HAN
from arpo.final_answer import unwrapped
from arpo.rewards.maths.equality import FUNCTIONS
from arpo.rewards.maths.units import WORDS
from arpo.rewards.quantities import WORD_VALUES

MAX_CHARS = 2_000  # a longer answer is not a formula
MAX_DIGITS = 2_000


class UnreadableError(Exception):
    """The text is not read to its end."""


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is "number", "letter", "word", "command" or "mark"."""

    kind: str
    text: str
    value: Fraction = Fraction(0)
    spaced: bool = False  # space stands before it
    roman: bool = False  # from \text{} or \mathrm{}
    base: int = 0  # of a number, where it is written


POWERS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
GREEK_LETTERS = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "lambda",
    "mu",
    "rho",
    "sigma",
    "phi",
    "omega",
    "Delta",
    "Omega",
)
SIGNS = MappingProxyType(
    {
        "−": "-",
        "×": r"\times ",
        "÷": "/",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "°": r"^\circ ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∞": r"\infty ",
        "π": r"\pi ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "±": r"\pm ",
        "∅": r"\emptyset ",
        "θ": r"\theta ",
        "’": "'",
        "′": "'",
        "…": r"\ldots ",
        "，": ",",
        "；": ";",
        "。": ".",
        "：": ":",
        "“": '"',
        "”": '"',
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℚ": r"\mathbb{Q}",
        "ℕ": r"\mathbb{N}",
        "ℂ": r"\mathbb{C}",
        "∓": r"\mp ",
        **{letter: rf"\{name} " for letter, name in zip("αβγδελμρσφωΔΩ", GREEK_LETTERS, strict=True)},
    }
)
IN_TEX = str.maketrans(dict(SIGNS))
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))")
REWRITES = (
    (re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}\s*|\\[!,;: ])(?=\d{3}(?!\d))"), ""),  # thousands in TeX
    (
        re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lrm]?|hfill|hspace\{[^{}]*\})(?![A-Za-z])"),
        "",
    ),
    (re.compile(r"\\\\\[\d*\.?\d*(?:pt|em|ex)\]"), r"\\\\"),
    (re.compile(r"(?<!\\)\\[!,;:> ]|~(?=\s*\d)|\\(?:quad|qquad|thinspace|medspace|enspace)(?![A-Za-z])"), " "),
    (re.compile(r"\*\*(?=\s*[\w({-])"), "^"),
    (re.compile(r"(?<!\\)\\[()\[\]]"), " "),  # frames
)
FRAME = re.compile(r"(?:\*\*|__|`)(?P<inside>[^*`]+)(?:\*\*|__|`)(?P<stop>\.?)")
SPACED_THOUSANDS = r"\d{1,3}(?:\ \d{3})+(?![\d.])(?!\ ?\d)"
THOUSANDS = r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?"
NUMERAL = r"(?:\d[0-9A-F]*|[A-F][0-9A-F]+)"
BASE = rf"(?:\d+|{'|'.join(word for word, value in WORD_VALUES.items() if 2 <= value <= 16)})"
WRITTEN_BASE = rf"(?:in\s+)?[Bb]ase[-\s]+{BASE}"
BASED = (
    rf"(?:{NUMERAL}|\({NUMERAL}\)|\\(?:text|mathrm)\{{{NUMERAL}\}})(?:"  # 101, (101), \text{A5}, and then
    rf"\s*_\s*(?:\d+|\{{\s*\(?{BASE}\)?\s*\}}|\{{?\\text\{{\s*{BASE}\s*\}}+)(?!\d)|"  # _2, _{(2)}, _\text{two}
    rf"\s*(?:{WRITTEN_BASE}|\({WRITTEN_BASE}\)|\\text\{{\s*(?:in\s+)?base\s*\}}\s*{BASE}"  # base 2, (base two)
    rf"|\\text\{{\s*(?:{WRITTEN_BASE}|\({WRITTEN_BASE}\))\s*\}})(?!\w))"
)
TOKEN = re.compile(
    rf"""
    (?P<space>\s+)
  | (?P<repeating>\d*\.\d*\\(?:overline|dot|bar)\s*(?:\{{\s*\d+\s*\}}|\d))
  | (?P<endless>\d*\.\d+\s*(?:\\[lcd]?dots(?![A-Za-z])|\.\.\.))
  | (?P<based>{BASED})
  | (?P<thousands>{THOUSANDS}|{SPACED_THOUSANDS})
  | (?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\w.^(]))?)
  | \\(?P<roman>text(?:bf|it|rm|sf|tt|up|normal)?|mbox|mathrm|mathit|mathsf|operatorname\*?|emph|textnormal)\s*\{{
  | \\(?P<command>[A-Za-z]+)
  | \\(?P<escaped>[\\{{}}|%\#&$_])
  | (?P<dots>\.\.\.)
  | (?P<halfday>[ap]\.\s?m\.?(?![A-Za-z]))
  | (?P<han>[{HAN}]+)
  | (?P<letters>[^\W\d_{HAN}]+(?:'[^\W\d_{HAN}]+|(?<=[^\W\d_]{{3}})-(?=[^\W\d_]{{3}})[^\W\d_{HAN}]+)*)
  | (?P<mark><=|>=|!=|==|->|=>|!!|''|.)
""",
    re.VERBOSE | re.DOTALL,
)
ESCAPED = MappingProxyType({"\\": "\\\\", "{": "lbrace", "}": "rbrace", "|": "norm", "%": "%", "$": "usd", "_": "_"})
SYNONYMS = MappingProxyType(
    {
        "leq": "le",
        "leqslant": "le",
        "geq": "ge",
        "geqslant": "ge",
        "neq": "ne",
        "lt": "<",
        "gt": ">",
        "dots": "ldots",
        "cdots": "ldots",
        "dotsc": "ldots",
        "dotsb": "ldots",
        "ast": "*",
        "dfrac": "frac",
        "tfrac": "frac",
        "cfrac": "frac",
        "dbinom": "binom",
        "tbinom": "binom",
        "varnothing": "emptyset",
        "lbrace": "lbrace",
        "rbrace": "rbrace",
        "backslash": "setminus",
        "lvert": "|",
        "rvert": "|",
        "vert": "|",
        "colon": ":",
        "degree": "degree",
        "lg": "log",
        "land": "land",
        "to": "rightarrow",
        "varphi": "phi",
        "varepsilon": "epsilon",
        "boldsymbol": "mathbf",
        "infinity": "infty",
        "lbrack": "[",
        "rbrack": "]",
        "asin": "arcsin",
        "acos": "arccos",
        "atan": "arctan",
    }
)
PLAIN_COMMANDS = FUNCTIONS & {
    *(
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sinh",
        "cosh",
        "tanh",
        "arcsin",
        "arccos",
        "arctan",
    ),
    "abs",
} | {"sqrt", "pi", "infty", "infinity", "oo", "gcd", "lcm", "max", "min", "theta", "alpha", "beta", "cis"}


def tokenize(text: str) -> tuple[Token, ...]:
    """The tokens of an answer: of its box if it has one, without frames such as `$...$` and `**...**`.

    Raises UnreadableError.
    """
    if len(text) > MAX_CHARS:
        raise UnreadableError("too long")
    tokens = list(_split(_one_notation(text), roman=False))
    while tokens and tokens[-1].kind == "mark" and tokens[-1].text in (".", ","):
        tokens.pop()
    if not tokens:
        raise UnreadableError("blank")
    return tuple(_articles(tokens))


def _articles(tokens: list[Token]) -> Iterator[Token]:
    """`a` and `I` before a word are words; AM without a number before it is a line segment."""
    for at, token in enumerate(tokens):
        if token.kind == "word" and token.text in ("AM", "PM"):
            if at and tokens[at - 1].kind == "number":
                yield Token("word", token.text.casefold(), spaced=token.spaced, roman=token.roman)
            else:
                yield Token("letter", token.text, spaced=token.spaced)
            continue
        after = tokens[at + 1].kind if at + 1 < len(tokens) else ""
        is_word = token.kind == "letter" and token.text in ("a", "A", "I") and after == "word"
        if is_word and (at == 0 or tokens[at - 1].kind == "word"):
            yield Token("word", token.text.casefold(), spaced=token.spaced, roman=token.roman)
        else:
            yield token


def _one_notation(text: str) -> str:
    text = unwrapped(unwrapped(text.translate(FULL_WIDTH))).strip().removeprefix("####").strip()
    text = frame["inside"] if (frame := FRAME.fullmatch(text)) else text
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        text = re.sub(f"[{''.join(POWERS)}]+", lambda m: "^{" + "".join(POWERS[c] for c in m[0]) + "}", text)
        text = re.sub("[¼-¾⅐-⅞]", _vulgar, text)
        text = ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text).translate(IN_TEX)
        text = re.sub(r"(?<![\w)])\s*–", "-", text)  # between numbers it is a range
        text = re.sub(r"[^\x00-\x7f]", lambda m: str(unicodedata.decimal(m[0], m[0])), text)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    if len(re.findall(r"(?<!\\)\$", text)) % 2:  # a currency: in pairs, dollars are frames
        text = re.sub(r"(?<!\\)\$(?=\s?[\d.])", r"\\$", text, count=1)
    return re.sub(r"(?<!\\)\$", " ", text)


def _vulgar(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match[0]).split("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _split(text: str, *, roman: bool) -> Iterator[Token]:
    at, depth, spaced = 0, 0, False
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match is not None and match.lastgroup is not None
        kind, at = match.lastgroup, match.end()
        if kind == "thousands" and depth:  # (1,234) are two numbers
            match = re.compile(r"(?P<number>\d+)").match(text, match.start())
            assert match is not None
            kind, at = "number", match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "roman":
            stop = _closing(text, at)
            yield from _roman(match["roman"], text[at:stop], spaced=spaced)
            at, spaced = stop + 1, text[stop - 1] == " "
            continue
        if kind in ("mark", "escaped"):
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(match[kind], 0)
        yield from _tokens(kind, match[kind], spaced=spaced, roman=roman)
        spaced = False


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
        if depth == 0:
            return at
    raise UnreadableError("a brace is not closed")


def _roman(command: str, inside: str, *, spaced: bool) -> Iterator[Token]:
    content = list(_split(inside, roman=command != "mathit"))
    if content:
        first = content[0]
        content[0] = Token(first.kind, first.text, first.value, spaced or first.spaced, first.roman)
    yield from content


def _tokens(kind: str, text: str, *, spaced: bool, roman: bool) -> Iterator[Token]:
    match kind:
        case "number" | "thousands":
            yield Token("number", *_number(re.sub(r"[,\s]", "", text)), spaced, roman)
        case "repeating" | "endless":
            yield Token("number", *_repeating(kind, text), spaced, roman)
        case "based":
            yield _based(text, spaced)
        case "command":
            name = SYNONYMS.get(text, text)
            yield Token("command" if name.isalpha() else "mark", name, spaced=spaced, roman=roman)
        case "escaped":
            yield Token("mark", ESCAPED.get(text, "\\" + text), spaced=spaced)
        case "dots":
            yield Token("command", "ldots", spaced=spaced)
        case "halfday":
            yield Token("word", text[0] + "m", spaced=spaced, roman=True)
        case "han":
            yield Token("word", text, spaced=spaced)
        case "letters":
            yield from _letters(text, spaced=spaced, roman=roman)
        case _:
            yield Token(
                "mark",
                {"<=": "le", ">=": "ge", "!=": "ne", "==": "=", "->": "rightarrow"}.get(text, text),
                spaced=spaced,
            )


def _letters(text: str, *, spaced: bool, roman: bool) -> Iterator[Token]:
    folded = text.casefold()
    if "-" in text and folded not in WORD_VALUES:
        for part in text.split("-"):
            yield from _letters(part, spaced=spaced, roman=roman)
    elif len(text) == 1 and text.isascii():
        yield Token("letter", text, spaced=spaced, roman=roman)
    elif text in PLAIN_COMMANDS:
        yield Token("command", {"oo": "infty"}.get(text, SYNONYMS.get(text, text)), spaced=spaced)
    elif text in ("AM", "PM") and not roman:
        yield Token("word", text, spaced=spaced)
    elif folded in WORDS or len(text) > 3 or not text.isascii() or (roman and not text.isupper()):
        yield Token("word", folded, spaced=spaced, roman=roman)
    elif text.isupper():
        yield Token("letter", text, spaced=spaced, roman=roman)  # a line segment, a triangle
    else:
        for at, letter in enumerate(text):
            yield Token("letter", letter, spaced=spaced and at == 0, roman=roman)


def _number(text: str) -> tuple[str, Fraction]:
    digits, _, exponent = text.casefold().partition("e")
    if len(digits) > MAX_DIGITS or abs(int(exponent or 0)) > 5_000:
        raise UnreadableError("a number of too many digits")
    return text, Fraction(text)


def _repeating(kind: str, text: str) -> tuple[str, Fraction]:
    """The value of `0.1\\overline{6}`, and of `0.1666...`, in which the last digits must repeat."""
    whole, _, decimals = re.sub(r"[\s{}]|\.\.\.|\\[a-z]*dots", "", text).partition(".")
    if kind == "repeating":
        fixed, _, period = re.sub(r"\\(?:overline|dot|bar)", "|", decimals).partition("|")
    elif match := re.fullmatch(r"(\d*?)(?:(\d)\2{2,}|(\d{2,6}?)\3+)", decimals):
        fixed, period = match[1], match[2] or match[3]
    else:
        raise UnreadableError("digits follow that nobody knows")
    if len(fixed + period) > 60:
        raise UnreadableError("a number of too many digits")
    value = Fraction(int(fixed + period) - int(fixed or 0), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"{whole or 0}.{fixed}({period})", int(whole or 0) + value


def _based(text: str, spaced: bool) -> Token:
    words = re.findall(r"[0-9A-Za-z]+", re.sub(r"\\[a-z]+", " ", text))
    digits, base = words[0], int(WORD_VALUES.get(words[-1], words[-1][:4]))
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits) or len(digits) > 200:
        raise UnreadableError("digits that its base does not have")
    return Token("number", f"{digits}_{base}", Fraction(int(digits, base)), spaced, base=base)
