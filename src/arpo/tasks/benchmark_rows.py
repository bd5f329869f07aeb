"""What is odd about the rows of single benchmarks: golds inside solutions, encrypted text, questions that need a picture.

Pure functions of one row. Refuses to know files and which benchmark is asked.
"""

import base64
import binascii
import re
from collections.abc import Mapping

from arpo.errors import FormatError
from arpo.final_answer import boxed
from arpo.tasks.rows import Skipped

Row = Mapping[str, object]
READING = re.compile(r"\s*[(（](?:又名|也称作|又称|也叫|别名|即|also known as|aka)\s*(.+?)[)）]\s*$", re.IGNORECASE)


def as_it_is(row: Row, place: str) -> Row | Skipped:
    return row


def math_row(row: Row, place: str) -> Row | Skipped:
    r"""MATH's golds are the last `\boxed{}` of a solution. Raises FormatError where there is none."""
    if row.get("answer"):
        return row
    solution = row.get("solution")
    gold = boxed(solution) if isinstance(solution, str) else None
    if not gold:
        raise FormatError(f"{place}, key 'solution': no \\boxed{{}} to take the reference answer from (got {solution!r:.80})")
    return {**row, "answer": gold}


def musique_row(row: Row, place: str) -> Row | Skipped:
    """MuSiQue keeps other forms of the gold apart; questions that its passages cannot answer are left out."""
    if row.get("answerable") is False:
        return Skipped(place, "answerable", "not answerable")
    others = row.get("answer_aliases")
    if not isinstance(others, list) or not isinstance(row.get("answer"), str):
        return row
    return {**row, "answer": [row["answer"], *others]}


def webwalker_row(row: Row, place: str) -> Row | Skipped:
    """Level and domain stand inside `info`; the keys come in capitals too (`Root_Url`)."""
    plain = {key.lower(): value for key, value in row.items()}
    info = plain.pop("info", None)
    return {**plain, **{key.lower(): value for key, value in info.items()}} if isinstance(info, Mapping) else plain


def gaia_row(row: Row, place: str) -> Row | Skipped:
    """The text-only part: questions that come with a file are left out. The test split hides its golds: "?"."""
    if row.get("file_name"):
        return Skipped(place, "file_name", f"needs the file {row['file_name']!r}")
    if row.get("Final answer") == "?":
        return Skipped(place, "Final answer", "the answer is kept secret (the test split is scored by its authors)")
    return row


def hle_row(row: Row, place: str) -> Row | Skipped:
    """The text-only part; questions with choices are scored by the letter."""
    if row.get("image"):
        return Skipped(place, "image", "needs a picture")
    kind = row.get("answer_type")
    return {**row, "measure": "choice"} if kind == "multipleChoice" else row


def xbench_row(row: Row, place: str) -> Row | Skipped:
    """xbench publishes question and answer as base64 of XOR with the row's `canary`, repeated; plain rows have none.

    Source: the function that its authors publish with the set. Raises FormatError for text that does not decrypt.
    """
    canary = row.get("canary")
    if not canary:
        return row
    if not isinstance(canary, str):
        raise FormatError(f"{place}, key 'canary': the key of the encryption is text (got {canary!r:.80})")
    keys = [key for key in ("prompt", "question", "answer") if isinstance(row.get(key), str)]
    return {**row, **{key: decrypted(str(row[key]), canary, f"{place}, key {key!r}") for key in keys}}


def decrypted(text: str, key: str, place: str) -> str:
    """Text from base64 of its UTF-8 bytes XOR the bytes of `key`, repeated."""
    try:
        return xor(base64.b64decode(text, validate=True), key.encode()).decode()
    except (binascii.Error, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise FormatError(f"{place}: cannot be decrypted with the row's canary: {error} (got {text!r:.60})") from error


def encrypted(text: str, key: str) -> str:
    """The inverse of `decrypted`."""
    return base64.b64encode(xor(text.encode(), key.encode())).decode()


def xor(data: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[at % len(key)] for at, byte in enumerate(data))


def only_itself(gold: str) -> tuple[str, ...]:
    return (gold,)


def xbench_golds(gold: str) -> tuple[str, ...]:
    """A gold of xbench with its other names, which stand in it: 孙悟空/悟空/齐天大圣, 萎蕤（又名玉竹）."""
    if found := READING.search(gold):
        return (gold, gold[: found.start()], *filter(None, re.split(r"[、/]", found[1])))
    parts = tuple(part.strip() for part in gold.split("/"))
    names = len(parts) > 1 and all(parts) and not any(character.isdigit() for character in gold)
    return (gold, *parts) if names else (gold,)
