r"""Reads the letter of a choice: `B`, `(B)`, `B. Paris`, `\text{(B)}`, `The answer is B`, `选B`.

Knows how answers state a letter. Refuses to know the texts of the choices.
"""

import re

from arpo.answer_text import FULL_WIDTH, exact

WRAPS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed|mbox)\s*\{([^{}]*)\}|\$|\*\*|[`\"'“”\[\]【】<>]")
MAX_CHARS = 5_000  # an answer that chooses a letter is short
LETTERS = r"[A-Z](?:\s*(?:,\s*and|,|、|and|&|和)\s*[A-Z])*"
SIGNED = re.compile(rf"(?:[Bb]oth\s+)?\(?({LETTERS}|[a-z])\s*(?:选?项|\)\s*[.:。]?|[.:。)])?")  # the whole answer
LABELLED = re.compile(  # the letter, then the text of the choice or a reason
    r"(?:\(([A-Za-z])\)|([A-Z])\s*[.:)]|([a-z])\s*[:)])\s+(?!(?:or|and|nor)\b)\S[\s\S]*|"
    r"([A-Z])(?:\s*\n|\s+[-–—]\s|\s*\((?:not|rather|instead)\b|,?\s+(?:because|since|as|not|rather)\b|\s+(?:is|为|是)\s*(?:the\s+)?"
    r"(?:correct|right|best|正确)\b)[\s\S]*"
)
LEAD = (
    r"(?<![不非])(?:\b(?:the\s+)?(?:correct\s+|right\s+|best\s+|final\s+)?(?:answer|option|choice)|\bI\s+(?:would\s+)?(?:choose|pick|select)"
    r"|正确答案|答案|选项|应选|故选|选择|选)"
)
STATED = re.compile(
    rf"{LEAD}\s*(?:is|are|would\s+be|为|是)?\s*:?\s*(?:option|choice|选项)?\s*(?:\(([A-Z])\)|\(?({LETTERS})(?![^\W_a-z]|['’]|[a-z])\)?)",
    re.IGNORECASE,
)
DENIED = re.compile(  # before a letter: "it can't be B"
    r"\b(?:not|never|cannot|except|(?:ca|is|was|are|do|does|did|would|could)n['’]?t)(?:\s+[a-z]+){0,2}\s*$",
    re.IGNORECASE,
)
HEDGED = re.compile(
    r"\)?\s*[-–—,]?\s*(?:or\b|as\s+well\s+as\b|或)", re.IGNORECASE
)  # after a letter: the answer names more than one


def read_choice(text: str) -> frozenset[str]:
    """The letters that `text` chooses; empty if it chooses none or contradicts itself."""
    normalized = text[:MAX_CHARS].translate(FULL_WIDTH)
    while (bare := WRAPS.sub(lambda match: match[1] or "", normalized)) != normalized:
        normalized = bare
    normalized = normalized.strip()
    if match := SIGNED.fullmatch(normalized):
        return _letters(match[1].upper() if len(match[1]) == 1 else match[1])
    if match := LABELLED.fullmatch(normalized):
        end = match.end(match.lastindex or 0)
        return frozenset() if HEDGED.match(normalized, end) else _letters(normalized[end - 1].upper())
    choices = [letters for match in STATED.finditer(normalized) if (letters := _stated(match))]
    if any(
        HEDGED.match(normalized, match.end()) or DENIED.search(normalized[: match.start()][-60:])
        for match in STATED.finditer(normalized)
    ):
        return frozenset()
    return choices[0] if len(set(choices)) == 1 else frozenset()


def _stated(match: re.Match[str]) -> frozenset[str]:
    """The letters that a statement names. A lower-case letter counts only in parentheses or after a colon at the end,
    because of "the answer is a dog"."""
    letters = match[1] or match[2]
    at_the_end = ":" in match[0] and match.end() == len(match.string.rstrip(" ."))
    is_letter = match[1] or at_the_end or letters == letters.upper() or re.search(r"[A-Z]", letters)
    return _letters(letters.upper() if len(letters) == 1 else letters) if is_letter else frozenset()


def choice(answer: str, gold: str) -> float:
    """1.0 if both choose the same letters. A gold that is not a letter is compared as text."""
    gold_letters = read_choice(gold)
    return float(read_choice(answer) == gold_letters) if gold_letters else exact(answer, gold)


def _letters(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Z]", text))
