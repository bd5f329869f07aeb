"""Reads a row of foreign data: finds the columns of question and answers, and repairs damaged characters.

Knows the shapes in which question sets circulate. Refuses to know files: a row is a mapping with the place it comes
from.

    question   question | problem | Question | prompt (text, or chat messages) | ...
    answer     answer | final_answer | reward_model.ground_truth | solution with a box | ... (`golds` knows the forms)
    setup      an object or a list: what an environment or a tool starts from. Such a row may have no answer
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from arpo.errors import FormatError, nearest
from arpo.final_answer import boxed, enclosed
from arpo.tasks import Task
from arpo.tasks.golds import UnclearGoldError, golds

QUESTION_COLUMNS = ("question", "problem", "Question", "Problem", "messages", "prompt", "query", "input")
ANSWER_COLUMNS = (
    "answer",
    "answers",
    "Answer",
    "golden_answers",
    "ground_truth",
    "reward_model.ground_truth",
    "final_answer",
    "expected_answer",
    "target",
    "solution",
    "output",
)
MORE_ANSWERS = ("answers", "golden_answers", "aliases", "answer_aliases")  # beside `answer`: right as well
ROLES = ("system", "user", "assistant")
SYSTEM = ("system", "developer")
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
    and "answer" (dots reach into a column). A row with a `setup` needs no answer: what it sets up may say what is
    right. Raises FormatError, which names place, key and value, if a column is missing or has a wrong type.
    """
    question_key = _column(row, "question", QUESTION_COLUMNS, columns, place)
    setup = without_nulls(row["setup"]) if isinstance(row.get("setup"), Mapping | list) else None
    needs_answer = setup is None or "answer" in columns or has_answer(row)
    answer_key = _column(row, "answer", ANSWER_COLUMNS, columns, place) if needs_answer else ""
    system, messages = _messages(_dig(row, question_key), f"{place}, key {question_key!r}", mend)
    if not messages[-1]["content"].strip():
        return Skipped(place, question_key, "the question is blank")
    gold = _dig(row, answer_key)
    try:
        answers = _golds(gold, f"{place}, key {answer_key!r}", mend)
        more = [] if "answer" in columns else _more_answers(row, answer_key, answers, place, mend)
    except UnclearGoldError as error:
        return Skipped(place, answer_key, str(error))
    if not answers and setup is None:
        return Skipped(place, answer_key, f"the reference answer is blank ({gold!r})")
    used = {question_key.split(".")[0], answer_key.split(".")[0], *(key for key, _ in more)}
    used |= {"setup"} if setup is not None else set()
    metadata = {key: without_nulls(value) for key, value in row.items() if key not in used and value is not None}
    if system:
        metadata["system_prompt"] = system
    if isinstance(gold, str) and "\n" in gold.strip():
        metadata["solution"] = gold
    answers = tuple(dict.fromkeys([*answers, *(answer for _, others in more for answer in others)]))
    data_source = row.get("data_source")
    return Task(
        id=_id(row.get("id"), name),
        messages=messages,
        answers=answers,
        source=data_source if isinstance(data_source, str) and data_source else source,
        metadata=metadata,
        setup=setup,
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
    if (filled := _filled(row, usual)) is not None:
        return filled
    present = next((key for key in usual if key in row and row[key] is None), None)
    if present is not None:
        return present  # the column exists but is null: blank, or refused with its own message
    raise FormatError(
        f"{place}: no {role} column: expected one of {', '.join(usual)}; the row has "
        f"{', '.join(map(str, row)) or 'nothing'}. Name yours with columns.{role}"
    )


def without_nulls(value: Any) -> Any:
    """`value` without keys whose value is null, at any depth: Arrow gives every object of a column the keys of all of
    them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _filled(row: Mapping[str, object], usual: Sequence[str]) -> str | None:
    """The first of the columns `usual` that holds something; of solutions only those that mark their answer."""
    return next(
        (key for key in usual if _dig(row, key) is not None and (key != "solution" or _ends_in_answer(row[key]))), None
    )


def has_answer(row: Mapping[str, object]) -> bool:
    """Whether `row` has a reference answer in one of ANSWER_COLUMNS."""
    return _filled(row, ANSWER_COLUMNS) is not None


def _ends_in_answer(solution: object) -> bool:
    """Whether a solution marks its answer: in a box, in answer tags or after "####"."""
    return isinstance(solution, str) and bool(boxed(solution) or enclosed(solution, "answer")[0] or "####" in solution)


def _messages(question: object, where: str, mend: TextRepair) -> tuple[str, tuple[Mapping[str, str], ...]]:
    """(system prompt, other chat messages) of a question that is text or a list of messages, which may be written as
    JSON text."""
    read = as_messages("" if question is None else question, "user")
    if not read:
        raise FormatError(f"{where}: expected text or a list of messages (got {question!r})")
    system, messages = [], []
    for number, message in enumerate(read):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = (
            text_of(message.get("content"), f"{where}: message {number}") if isinstance(message, Mapping) else None
        )
        if role not in (*ROLES, *SYSTEM) or content is None:
            raise FormatError(
                f"{where}: message {number} needs a role ({', '.join(dict.fromkeys((*SYSTEM, *ROLES)))}) and text as "
                f"content (got {message!r})"
            )
        if role in SYSTEM:
            system.append(intern(mend(content)))  # ten thousand rows share one prompt
        else:
            messages.append({"role": role, "content": mend(content)})
    if not messages or messages[-1]["role"] != "user":
        raise FormatError(f"{where}: the last message must be the user's question (got {read[-1]!r})")
    return "\n\n".join(system), tuple(messages)


def as_messages(value: object, role: str) -> list[Any] | None:
    """Chat messages from a list of them, its JSON text (as in a CSV file), or a text, which is one message of `role`.
    None for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(ValueError, RecursionError):
            parsed = json.loads(value)
            if all(isinstance(item, dict) and "role" in item for item in parsed):
                return list(parsed)
    if isinstance(value, str):
        return [{"role": role, "content": value.strip()}]
    return list(value) if isinstance(value, list | tuple) else None


def text_of(content: object, where: str) -> str | None:
    """The text of a message's content: text, or a list of parts of type `text`. None for anything else. Raises
    FormatError for a part of another type, such as a picture."""
    if isinstance(content, str):
        return content
    content = content.tolist() if hasattr(content, "tolist") else content
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        return None
    for part in content:
        if part.get("type", "text") not in ("text", "input_text", "output_text") or not isinstance(
            part.get("text"), str
        ):
            raise FormatError(f"{where}: only parts of type text can be read (got {part!r:.80})")
    return "".join(part["text"] for part in content)


def _golds(cell: object, where: str, mend: TextRepair) -> tuple[str, ...]:
    """All right answers in a cell; empty if it is blank. Raises FormatError with the place."""
    try:
        return golds(_mended(cell, mend))
    except UnclearGoldError:
        raise
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None


def _mended(value: Any, mend: TextRepair) -> Any:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, Mapping):
        return {key: _mended(item, mend) for key, item in value.items()}
    return [_mended(item, mend) for item in value] if isinstance(value, list | tuple) else value


def _more_answers(
    row: Mapping[str, object], answer_key: str, answers: Sequence[str], place: str, mend: TextRepair
) -> list[tuple[str, tuple[str, ...]]]:
    """The answers of the columns beside `answer` that hold further right ones. Raises FormatError where `answers` does
    not hold the answer: then they may be choices."""
    if answer_key not in ("answer", "Answer"):
        return []
    more = [(key, _golds(row[key], f"{place}, key {key!r}", mend)) for key in MORE_ANSWERS if row.get(key) is not None]
    for key, others in more:
        if key == "answers" and others and not set(answers) & set(others):
            raise FormatError(
                f"{place}, key 'answers': holds {others!r:.80}, and not the answer {answers[0]!r:.40}: name the "
                "right column with columns.answer (answer or answers)"
            )
    return more
