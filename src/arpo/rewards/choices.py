r"""The letter of a choice: `B`, `(B)`, `B. Paris`, `\text{(B)}`, `The answer is B`, `选B`. Refuses to know what the choices say."""

import re

from arpo.answer_text import FULL_WIDTH, exact

WRAPS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed|mbox)\s*\{([^{}]*)\}|\$|\*\*|[`\"'“”\[\]【】<>]")
MOST_CHARS = 5_000  # an answer that chooses a letter is short
LETTERS = r"[A-Z](?:\s*(?:,\s*and|,|、|and|&|和)\s*[A-Z])*"
SIGNED = re.compile(rf"(?:[Bb]oth\s+)?\(?({LETTERS}|[a-z])\s*(?:选?项|\)\s*[.:。]?|[.:。)])?")  # all of it
LABELLED = re.compile(  # the letter, then the choice's text, or why
    r"(?:\(([A-Za-z])\)|([A-Z])\s*[.:)]|([a-z])\s*[:)])\s+(?!(?:or|and|nor)\b)\S[\s\S]*|"
    r"([A-Z])(?:\s*\n|\s+[-–—]\s|\s*\((?:not|rather|instead)\b|,?\s+(?:because|since|as|not|rather)\b|\s+(?:is|为|是)\s*(?:the\s+)?"
    r"(?:correct|right|best|正确)\b)[\s\S]*"
)
LEAD = (
    r"(?<![不非])(?:\b(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer|option|choice)|\bI\s+(?:would\s+)?(?:choose|pick|select)"
    r"|正确答案|答案|选项|应选|故选|选择|选)"
)
TOLD = re.compile(
    rf"{LEAD}\s*(?:is|are|would\s+be|为|是)?\s*:?\s*(?:option|choice|选项)?\s*(?:\(([A-Z])\)|\(?({LETTERS})(?![^\W_a-z]|['’]|[a-z])\)?)",
    re.IGNORECASE,
)
DENIED = re.compile(  # before a letter: "it can't be B"
    r"\b(?:not|never|cannot|except|(?:ca|is|was|are|do|does|did|would|could)n['’]?t)(?:\s+[a-z]+){0,2}\s*$", re.IGNORECASE
)
HEDGED = re.compile(r"\)?\s*[-–—,]?\s*(?:or\b|as\s+well\s+as\b|或)", re.IGNORECASE)  # after a letter: more than one is meant


def read_choice(text: str) -> frozenset[str]:
    """The letters that `text` chooses; empty where it chooses none, or says several things."""
    plain = text[:MOST_CHARS].translate(FULL_WIDTH)
    while (bare := WRAPS.sub(lambda found: found[1] or "", plain)) != plain:
        plain = bare
    plain = plain.strip()
    if found := SIGNED.fullmatch(plain):
        return _letters(found[1].upper() if len(found[1]) == 1 else found[1])
    if found := LABELLED.fullmatch(plain):
        end = found.end(found.lastindex or 0)
        return frozenset() if HEDGED.match(plain, end) else _letters(plain[end - 1].upper())
    told = [_told(found) for found in TOLD.finditer(plain)]
    told = [each for each in told if each]
    if any(HEDGED.match(plain, found.end()) or DENIED.search(plain[: found.start()][-60:]) for found in TOLD.finditer(plain)):
        return frozenset()
    return told[0] if told and all(each == told[0] for each in told) else frozenset()


def _told(found: re.Match[str]) -> frozenset[str]:
    """A small letter is one only in parentheses or after a colon at the end: "the answer is a dog"."""
    said = found[1] or found[2]
    at_the_end = ":" in found[0] and found.end() == len(found.string.rstrip(" ."))
    meant = found[1] or at_the_end or said == said.upper() or re.search(r"[A-Z]", said)
    return _letters(said.upper() if len(said) == 1 else said) if meant else frozenset()


def choice(answer: str, gold: str) -> float:
    """1.0 where both choose the same letters; a gold that is no letter is compared as text."""
    wanted = read_choice(gold)
    return float(read_choice(answer) == wanted) if wanted else exact(answer, gold)


def _letters(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Z]", text))
