r"""Decides whether an answer of mathematics equals a gold: both are read to their end (`reader`) and compared
exactly (`values`). What cannot be read, and what cannot be decided, equals only the same text.
"""

from functools import lru_cache

from arpo.rewards.maths.expressions import UndecidedError, limited_work
from arpo.rewards.maths.reader import read
from arpo.rewards.maths.tokens import UnreadableError, tokenize
from arpo.rewards.maths.values import same


@lru_cache(maxsize=20_000)
def maths(answer: str, gold: str) -> float:
    """1.0 if `answer` equals `gold`, else 0.0."""
    try:
        one, other = tokenize(answer), tokenize(gold)
        if [(token.kind, token.text) for token in one] == [(token.kind, token.text) for token in other]:
            return 1.0
        with limited_work():
            return float(same(read(answer), read(gold)))
    except (UnreadableError, UndecidedError, RecursionError):
        return 0.0


def gold_problem(gold: str) -> str | None:
    """Why answers cannot be compared with `gold`, except as the same text; None for a gold that is read to its end."""
    try:
        with limited_work():
            value = read(gold)
            return None if same(value, value) else "is not equal to itself"
    except (UnreadableError, UndecidedError, RecursionError) as error:
        return f"cannot be read: {error}"
