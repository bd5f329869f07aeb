"""Peculiarities in the rows of single benchmarks: golds inside solutions, encrypted text, questions that need a
picture.

Pure functions of one row. Refuses to know files and the benchmark that a row comes from.
"""

import base64
import binascii
import re
from collections.abc import Mapping

from arpo.errors import FormatError
from arpo.final_answer import boxed
from arpo.tasks.rows import Skipped

Row = Mapping[str, object]
ALIAS = re.compile(r"\s*[(（](?:又名|也称作|又称|也叫|别名|即|also known as|aka)\s*(.+?)[)）]\s*$", re.IGNORECASE)


def unchanged(row: Row, place: str) -> Row | Skipped:
    return row


def math_row(row: Row, place: str) -> Row | Skipped:
    r"""Take MATH's gold from the last `\boxed{}` of the solution. Raises FormatError if there is none."""
    if row.get("answer"):
        return row
    solution = row.get("solution")
    gold = boxed(solution) if isinstance(solution, str) else None
    if not gold:
        raise FormatError(
            f"{place}, key 'solution': no \\boxed{{}} to take the reference answer from (got {solution!r:.80})"
        )
    return {**row, "answer": gold}


def musique_row(row: Row, place: str) -> Row | Skipped:
    """Skip questions that MuSiQue's passages cannot answer."""
    if row.get("answerable") is False:
        return Skipped(place, "answerable", "not answerable")
    return row


def webwalker_row(row: Row, place: str) -> Row | Skipped:
    """Lift level and domain out of `info`, and lower the case of the keys (`Root_Url`)."""
    lowered = {key.lower(): value for key, value in row.items()}
    info = lowered.pop("info", None)
    return {**lowered, **{key.lower(): value for key, value in info.items()}} if isinstance(info, Mapping) else lowered


def gaia_row(row: Row, place: str) -> Row | Skipped:
    """Keep the text-only part: skip questions that need a file. The test split hides its golds as "?"."""
    if row.get("file_name"):
        return Skipped(place, "file_name", f"needs the file {row['file_name']!r}")
    if row.get("Final answer") == "?":
        return Skipped(place, "Final answer", "the answer is kept secret (the test split is scored by its authors)")
    return row


def hle_row(row: Row, place: str) -> Row | Skipped:
    """Keep the text-only part. Multiple-choice questions are scored by the letter."""
    if row.get("image"):
        return Skipped(place, "image", "needs a picture")
    kind = row.get("answer_type")
    return {**row, "measure": "choice"} if kind == "multipleChoice" else row


def xbench_row(row: Row, place: str) -> Row | Skipped:
    """Decrypt a row of xbench, which publishes question and answer as base64 of the text XOR the repeated `canary`. A
    row without a canary is not encrypted.

    Source: the function that the authors publish with the data set. Raises FormatError for text that does not decrypt.
    """
    canary = row.get("canary")
    if not canary:
        return row
    if not isinstance(canary, str):
        raise FormatError(f"{place}, key 'canary': the encryption key must be text (got {canary!r:.80})")
    keys = [key for key in ("prompt", "question", "answer") if isinstance(row.get(key), str)]
    return {**row, **{key: decrypted(str(row[key]), canary, f"{place}, key {key!r}") for key in keys}}


def decrypted(text: str, key: str, place: str) -> str:
    """Decode base64, XOR the bytes with the repeated bytes of `key`, and decode the result as UTF-8."""
    try:
        return xor(base64.b64decode(text, validate=True), key.encode()).decode()
    except (binascii.Error, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise FormatError(f"{place}: cannot be decrypted with the row's canary: {error} (got {text!r:.60})") from error


def encrypted(text: str, key: str) -> str:
    """The inverse of `decrypted`."""
    return base64.b64encode(xor(text.encode(), key.encode())).decode()


def xor(data: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[at % len(key)] for at, byte in enumerate(data))


def single_gold(gold: str) -> tuple[str, ...]:
    return (gold,)


def xbench_golds(gold: str) -> tuple[str, ...]:
    """A gold of xbench and the other names that it contains: 孙悟空/悟空/齐天大圣, 萎蕤（又名玉竹）."""
    if match := ALIAS.search(gold):
        return (gold, gold[: match.start()], *filter(None, re.split(r"[、/]", match[1])))
    parts = tuple(part.strip() for part in gold.split("/"))
    names = len(parts) > 1 and all(parts) and not any(character.isdigit() for character in gold)
    return (gold, *parts) if names else (gold,)
