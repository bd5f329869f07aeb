"""Reads a row of foreign data: finds the columns of question and answers, and repairs damaged characters.

Knows the shapes in which question sets circulate. Refuses to know files: a row is a mapping with the place it comes
from.

    question   question | problem | Question | prompt (text, or chat messages) | ...
    answer     text | number | list of them | GSM8K's solution that ends in "#### n" | reward_model.ground_truth
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern

from arpo.errors import FormatError, nearest
from arpo.tasks import Task

QUESTION_COLUMNS = ("question", "problem", "Question", "Problem", "messages", "prompt", "query", "input")
ANSWER_COLUMNS = (
    "answer",
    "answers",
    "Answer",
    "golden_answers",
    "ground_truth",
    "reward_model.ground_truth",
    "target",
    "output",
)
ROLES = ("system", "user", "assistant")
# A control character that comes from reading LaTeX's backslash and letter as an escape sequence: "\boxed", "\frac",
# "\vec".
ESCAPED = re.compile(
    r"\x08(?=oxed|egin|inom|eta\b|ar\b|mod\b|ig)|\x0c(?=rac|orall)|\x0b(?=ec\b|dots\b)|\x07(?=lpha\b|ngle\b)"
)
LETTER = {"\x08": "\\b", "\x0c": "\\f", "\x0b": "\\v", "\x07": "\\a"}
STRAY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row without a task: its place, the key that is the cause, and the reason."""

    place: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}, key {self.key!r}: {self.reason}"


@dataclass(slots=True)
class TextRepair:
    """Repairs damaged characters and counts the repairs."""

    counts: dict[str, int] = field(default_factory=dict)  # kind of repair -> number of characters

    def __call__(self, text: str) -> str:
        text = self._sub(ESCAPED, text, lambda match: LETTER[match[0]], "control character read as a backslash")
        text = self._sub(STRAY, text, lambda match: "", "stray control character removed")
        return self._sub(SURROGATE, text, lambda match: "\ufffd", "half of a surrogate pair replaced")

    def _sub(
        self, pattern: re.Pattern[str], text: str, replacement: Callable[[re.Match[str]], str], repair: str
    ) -> str:
        text, count = pattern.subn(replacement, text)
        if count:
            self.counts[repair] = self.counts.get(repair, 0) + count
        return text


def task_from_row(
    row: Mapping[str, object], *, place: str, name: str, source: str, columns: Mapping[str, str], mend: TextRepair
) -> Task | Skipped:
    """The task in a row, or the reason why there is none (a blank question or answer).

    The task's id is the row's `id` (text or a whole number), else `name`. `columns` may name the columns of "question"
    and "answer" (dots reach into a column). Raises FormatError, which names place, key and value, if a column is
    missing or has a wrong type.
    """
    question_key = _column(row, "question", QUESTION_COLUMNS, columns, place)
    answer_key = _column(row, "answer", ANSWER_COLUMNS, columns, place)
    system, messages = _messages(_dig(row, question_key), f"{place}, key {question_key!r}", mend)
    if not messages[-1]["content"].strip():
        return Skipped(place, question_key, "the question is blank")
    gold = _dig(row, answer_key)
    answers = _answers(gold, f"{place}, key {answer_key!r}", mend)
    if not answers:
        return Skipped(place, answer_key, f"the reference answer is blank ({gold!r})")
    used = {question_key.split(".")[0], answer_key.split(".")[0]}
    metadata = {key: value for key, value in row.items() if key not in used and value is not None}
    if system:
        metadata["system_prompt"] = system
    if isinstance(gold, str) and "####" in gold:
        metadata["solution"] = gold
    data_source = row.get("data_source")
    return Task(
        id=_id(row.get("id"), name),
        messages=messages,
        answers=answers,
        source=data_source if isinstance(data_source, str) and data_source else source,
        metadata=metadata,
    )


def _id(row_id: object, name: str) -> str:
    """The row's id, or `name` if the row has no usable one."""
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        return name
    return str(row_id).strip() or name


def _dig(row: Mapping[str, object], key: str) -> object:
    """`row["a"]["b"]` for "a.b"; None if a part is missing."""
    if key in row:
        return row[key]
    value: object = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _column(row: Mapping[str, object], role: str, usual: Sequence[str], columns: Mapping[str, str], place: str) -> str:
    """The key that holds the question or the answer (`role`)."""
    if role in columns:
        key = columns[role]
        if key not in row and _dig(row, key) is None:
            raise FormatError(f"{place}: no column {key!r} (named by columns.{role}); {nearest(key, map(str, row))}")
        return key
    for key in usual:
        if _dig(row, key) is not None:
            return key
    present = next((key for key in usual if key in row), None)
    if present is not None:
        return present  # the column exists but is null: blank, or refused with its own message
    raise FormatError(
        f"{place}: no {role} column: expected one of {', '.join(usual)}; the row has "
        f"{', '.join(map(str, row)) or 'nothing'}. Name yours with columns.{role}"
    )


def _messages(question: object, where: str, mend: TextRepair) -> tuple[str, tuple[Mapping[str, str], ...]]:
    """(system prompt, other chat messages) of a question that is text or a list of messages."""
    if question is None or isinstance(question, str):
        return "", ({"role": "user", "content": mend(question or "").strip()},)
    if not isinstance(question, Sequence) or isinstance(question, bytes) or not question:
        raise FormatError(f"{where}: expected text or a list of messages (got {question!r})")
    system, messages = [], []
    for number, message in enumerate(question):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if role not in ROLES or not isinstance(content, str):
            raise FormatError(
                f"{where}: message {number} needs a role ({', '.join(ROLES)}) and text as content (got {message!r})"
            )
        if role == "system":
            system.append(intern(mend(content)))  # ten thousand rows share one prompt
        else:
            messages.append({"role": role, "content": mend(content)})
    if not messages or messages[-1]["role"] != "user":
        raise FormatError(f"{where}: the last message must be the user's question (got {question[-1]!r})")
    return "\n\n".join(system), tuple(messages)


def _answers(gold: object, where: str, mend: TextRepair) -> tuple[str, ...]:
    """All right answers as text, without repetition; empty if the gold is blank."""
    golds = list(gold) if isinstance(gold, Sequence) and not isinstance(gold, str | bytes) else [gold]
    texts = []
    for answer in golds:
        if answer is None:
            continue
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise FormatError(f"{where}: an answer must be text, a number or a list of them (got {gold!r})")
        if isinstance(answer, float) and not math.isfinite(answer):
            raise FormatError(f"{where}: an answer must be a finite number (got {answer!r})")
        texts.append(_final(mend(answer)) if isinstance(answer, str) else _number_text(answer))
    return tuple(dict.fromkeys(text for text in texts if text))


def _number_text(number: int | float) -> str:
    """A number as a person writes it: a column of whole numbers with a gap holds 54.0 for 54."""
    return str(int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number)


def _final(text: str) -> str:
    """The answer in a text: the part after GSM8K's "####" without thousands separators, else the whole text."""
    head, marks, tail = text.rpartition("####")
    if not marks or (head and not head.endswith("\n")) or "\n" in tail.strip():
        return text.strip()
    return re.sub(r"(?<=\d),(?=\d{3})", "", tail.strip())
