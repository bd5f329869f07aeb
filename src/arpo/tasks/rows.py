"""What a row of foreign data means: which column is the question, what the answers are, which characters were damaged.

Knows the shapes in which question sets circulate. Refuses to know files: rows come as mappings with the place they stand at.

    question   question | problem | Question | prompt (text, or chat messages) | ...
    answer     text | number | list of them | GSM8K's solution that ends in "#### n" | reward_model.ground_truth
"""

import math
import re
from collections.abc import Mapping, Sequence
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
# A back-space, form feed or vertical tab where LaTeX's backslash and letter were read as an escape: "\boxed", "\frac", "\vec".
ESCAPED = re.compile(r"\x08(?=oxed|egin|inom|eta\b|ar\b|mod\b|ig)|\x0c(?=rac|orall)|\x0b(?=ec\b|dots\b)|\x07(?=lpha\b|ngle\b)")
LETTER = {"\x08": "\\b", "\x0c": "\\f", "\x0b": "\\v", "\x07": "\\a"}
STRAY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that gives no task: where it stands, the key that is to blame and why."""

    place: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}, key {self.key!r}: {self.reason}"


@dataclass(slots=True)
class Mending:
    """Counts damaged characters while it repairs them."""

    counts: dict[str, int] = field(default_factory=dict)  # what was done -> how often

    def __call__(self, text: str) -> str:
        text = self._sub(ESCAPED, text, lambda found: LETTER[found[0]], "control character read as a backslash")
        text = self._sub(STRAY, text, lambda found: "", "stray control character removed")
        return self._sub(SURROGATE, text, lambda found: "\ufffd", "half of a surrogate pair replaced")

    def _sub(self, pattern: re.Pattern[str], text: str, by, what: str) -> str:  # type: ignore[no-untyped-def]
        text, count = pattern.subn(by, text)
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
        return text


def task_of(
    row: Mapping[str, object], *, place: str, name: str, source: str, columns: Mapping[str, str], mend: Mending
) -> Task | Skipped:
    """The task in a row, or why it gives none (a blank question or answer).

    The row's own `id` (text or a whole number) is the task's, else `name` is. `columns` may name the columns of "question" and
    "answer" (dotted for a column in a column). Raises FormatError naming place, key and value where a column is missing or holds
    something else than it should.
    """
    question_key = _column(row, "question", QUESTION_COLUMNS, columns, place)
    answer_key = _column(row, "answer", ANSWER_COLUMNS, columns, place)
    found = _dig(row, question_key)
    system, messages = _messages(found, f"{place}, key {question_key!r}", mend)
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
    given = row.get("data_source")
    return Task(
        id=_id(row.get("id"), name),
        messages=messages,
        answers=answers,
        source=given if isinstance(given, str) and given else source,
        metadata=metadata,
    )


def _id(given: object, name: str) -> str:
    """An id that a row brings; `name` where it brings none that could tell tasks apart."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        return name
    return str(given).strip() or name


def _dig(row: Mapping[str, object], key: str) -> object:
    """`row["a"]["b"]` for "a.b"; None where a part is missing."""
    if key in row:
        return row[key]
    here: object = row
    for part in key.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def _column(row: Mapping[str, object], what: str, usual: Sequence[str], columns: Mapping[str, str], place: str) -> str:
    """The key that holds the question or the answer."""
    if what in columns:
        key = columns[what]
        if key not in row and _dig(row, key) is None:
            raise FormatError(f"{place}: no column {key!r} (named by columns.{what}); {nearest(key, map(str, row))}")
        return key
    for key in usual:
        if _dig(row, key) is not None:
            return key
    present = next((key for key in usual if key in row), None)
    if present is not None:
        return present  # it is there but null: blank, or refused with its own message
    raise FormatError(
        f"{place}: no {what} column: expected one of {', '.join(usual)}; the row has {', '.join(map(str, row)) or 'nothing'}. "
        f"Name yours with columns.{what}"
    )


def _messages(found: object, where: str, mend: Mending) -> tuple[str, tuple[Mapping[str, str], ...]]:
    """(system prompt, chat messages without it) of a question that is text or a list of messages."""
    if found is None or isinstance(found, str):
        return "", ({"role": "user", "content": mend(found or "").strip()},)
    if not isinstance(found, Sequence) or isinstance(found, bytes) or not found:
        raise FormatError(f"{where}: expected text or a list of messages (got {found!r})")
    system, messages = [], []
    for number, message in enumerate(found):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if role not in ROLES or not isinstance(content, str):
            raise FormatError(f"{where}: message {number} needs a role ({', '.join(ROLES)}) and text as content (got {message!r})")
        if role == "system":
            system.append(intern(mend(content)))  # ten thousand rows share one prompt
        else:
            messages.append({"role": role, "content": mend(content)})
    if not messages or messages[-1]["role"] != "user":
        raise FormatError(f"{where}: the last message must be the user's question (got {found[-1]!r})")
    return "\n\n".join(system), tuple(messages)


def _answers(gold: object, where: str, mend: Mending) -> tuple[str, ...]:
    """All right answers as text, each once; empty where the gold is blank."""
    golds = list(gold) if isinstance(gold, Sequence) and not isinstance(gold, str | bytes) else [gold]
    texts = []
    for each in golds:
        if each is None:
            continue
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise FormatError(f"{where}: an answer is text, a number or a list of them (got {gold!r})")
        if isinstance(each, float) and not math.isfinite(each):
            raise FormatError(f"{where}: an answer must be a finite number (got {each!r})")
        texts.append(_final(mend(each)) if isinstance(each, str) else _plain(each))
    return tuple(dict.fromkeys(text for text in texts if text))


def _plain(number: int | float) -> str:
    """A number as a person writes it: a column of whole numbers with a gap is stored as 54.0."""
    return str(int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number)


def _final(text: str) -> str:
    """The answer in a text: what follows GSM8K's "####" (thousands separators dropped), else all of it."""
    head, marks, tail = text.rpartition("####")
    if not marks or (head and not head.endswith("\n")) or "\n" in tail.strip():
        return text.strip()
    return re.sub(r"(?<=\d),(?=\d{3})", "", tail.strip())
