r"""Reads the reference answers of a cell in the forms in which data sets hold them.

    text                        one answer; "... #### 204" (GSM8K), "<answer>204</answer>" and "\boxed{204}" are 204
    number                      54.0, as a column of whole numbers with a gap is stored, is 54; 1e22 is written out
    list                        any of several answers; also as the text of a JSON, Python or NumPy list of texts
    object                      the answers under its keys in KEYS (Search-R1's `{"target": [...]}`, TriviaQA's `value`
                                and `aliases`, SQuAD's `text`); also as JSON or Python text

A text such as "[1, 2]" remains one answer: it may be an interval or a list. Refuses to know rows and files.
"""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise

from arpo.errors import FormatError
from arpo.final_answer import BOX, boxed, enclosed

KEYS = ("target", "value", "text", "answer", "answers", "golden_answers", "ground_truth", "aliases")
NUMPY = re.compile(r"array\((\[[^\]]*\])(?:, dtype=[^)]*)?\)")
ON_ITS_LINE = re.compile(r"\s####\s*([-+]?[$€£]?\s?[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?[%°]?)\s*")
MOST_CHARS = 100_000  # of a text that is read as a list; a longer one is none


class UnclearGoldError(FormatError):
    """The cell holds a solution that does not say which of several answers is its last."""


def golds(cell: object) -> tuple[str, ...]:
    """All right answers in `cell`, without repetition; empty where it is blank.

    Raises FormatError, which names the value, for what is no answer, and UnclearGoldError.
    """
    return tuple(dict.fromkeys(text for text in _texts(cell, cell) if text))


def _texts(value: object, cell: object, *, nested: bool = False) -> list[str]:
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's arrays and numbers, as pandas holds them
    if value is None:
        return []
    if isinstance(value, str):
        listed = _as_list(value.strip())
        return [final(value)] if listed is None else _texts(listed, cell)
    if isinstance(value, Mapping):
        keys = [key for key in KEYS if value.get(key) is not None]
        if not keys and value:
            raise FormatError(
                f"an answer is text, a number or a list of them, or an object with one of {', '.join(KEYS)} "
                f"(got {cell!r:.200}); name the key that holds it with columns.answer"
            )
        return [text for key in keys for text in _texts(value[key], cell)]
    if isinstance(value, Sequence) and not isinstance(value, bytes) and not nested:
        return [text for item in value for text in _texts(item, cell, nested=True)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"an answer must be text, a number or a list of them (got {cell!r:.200})")
    if not math.isfinite(value):
        raise FormatError(f"an answer must be a finite number (got {value!r})")
    return [number_text(value)]


def number_text(number: int | float) -> str:
    """A number as a person writes it, without an exponent: 54 for 54.0, 10000000000000000000000 for 1e22."""
    if isinstance(number, int):
        return str(number)
    text = format(Decimal(repr(number)), "f")
    return text.removesuffix(".0") if "." in text else text


def final(text: str) -> str:
    """The answer in a text: in answer tags, after GSM8K's "####" (without thousands separators), in a box, else the
    whole text. Raises UnclearGoldError for several boxes with different contents."""
    tagged, _ = enclosed(text, "answer")
    text = tagged[-1].strip() if tagged else text.strip()
    head, marks, tail = text.rpartition("####")
    if marks and (not head or head.endswith("\n")) and "\n" not in tail.strip():
        return _without_separators(tail.strip())
    if match := ON_ITS_LINE.fullmatch(text, len(head) - 1 if head else 0):
        return _without_separators(match[1].strip())
    starts = [match.start() for match in BOX.finditer(text)]
    contents = dict.fromkeys(boxed(text[start:end]) for start, end in pairwise([*starts, len(text)]))
    if len(shown := [content for content in contents if content is not None]) > 1:
        raise UnclearGoldError(f"several boxes: {', '.join(shown):.80}")
    inner = boxed(text)
    return text if inner is None else inner


def _without_separators(number: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3})", "", number)


def _as_list(text: str) -> object:
    """The list or object that `text` writes as JSON, Python or NumPy would; None where it is a plain answer."""
    if len(text) > MOST_CHARS or (text[:1], text[-1:]) not in {("[", "]"), ("{", "}")}:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python(text)
    if isinstance(value, list | tuple):
        plain = all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in value)
        return value if plain and any(isinstance(item, str) for item in value) else None
    return value if isinstance(value, Mapping) and any(key in KEYS for key in value) else None


def _python(text: str) -> object:
    """`text` as a Python literal, or None. NumPy writes no commas: ['Ann' 'Anne'] would be read as one text."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(NUMPY.sub(r"\1", text)).readline))
        words = [
            f"{token.string}," if token.type == tokenize.STRING and after.type == tokenize.STRING else token.string
            for token, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True)
        ]
        return ast.literal_eval(" ".join(word for word in words if word.strip()))
    except (tokenize.TokenError, SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
