"""Syntaxes: the forms in which model families write tool calls. A chat template decides which one its model has
(`arpo.chat.dialect`); a recipe can name one (`chat.syntax`).

Knows texts of turns and tools' schemas. Refuses to know tokens, templates and model names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from arpo.core.tree import Call
from arpo.tools import Tool

Tools = Mapping[str, Tool]
MOST_MALFORMED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a syntax reads in the text of a turn."""

    calls: tuple[Call, ...] = ()  # a malformed one has an error that says why
    rest: str | None = ""  # the text outside of the calls, for people; None: nothing was addressed to them
    start: int = 0  # where the first call begins, with its opening marks; 0 without calls
    end: int = 0  # where the last call ends, with its closing marks; 0 without calls
    thought: bool = False  # the syntax has its own form of thoughts, and one is complete


class Syntax(Protocol):
    """One form of tool calls."""

    @property
    def name(self) -> str:
        """As a recipe names it."""
        ...

    @property
    def hints(self) -> tuple[str, ...]:
        """Texts of a prompt which, all together, ask for this syntax; the first is the mark that opens a call."""
        ...

    def opening(self, text: str) -> str:
        """The mark in `text` that opens a call of this syntax, or ""."""
        ...

    def read(self, text: str, tools: Tools) -> Reading:
        """The calls in the text of a turn. Never raises. Where a syntax writes bare text, values have the types of the
        tool's schema."""
        ...

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        """The text of calls, for templates that write none. Where a syntax numbers them: after `earlier` ones."""
        ...


def spaced(text: str, at: int) -> int:
    """Where the blanks at `at` end."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def given_up(calls: Sequence[Call]) -> bool:
    """True after MOST_MALFORMED malformed calls in a row: a model that repeats itself. The rest of its turn is not
    read, which would take long and tell it nothing new."""
    return len(calls) >= MOST_MALFORMED and all(call.error for call in calls[-MOST_MALFORMED:])


def openings(text: str, mark: str, calls: Sequence[Call], spans: list[tuple[int, int]]) -> Iterator[int]:
    """Where each `mark` starts that stands after the last of `spans`. The caller adds what it reads there to `calls`
    and `spans` before the next one. After too many malformed calls the rest of `text` becomes the last span."""
    at = 0
    while (start := text.find(mark, at)) >= 0:
        if given_up(calls):
            spans.append((start, len(text)))
            return
        yield start
        at = spans[-1][1]


def reading(text: str, calls: Sequence[Call], spans: Sequence[tuple[int, int]]) -> Reading:
    """What was read, where the calls stand at `spans`."""
    start, end = (spans[0][0], spans[-1][1]) if spans else (0, 0)
    return Reading(calls=tuple(calls), rest=without(text, spans), start=start, end=end)


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`text` without `spans`, which are in order and do not overlap."""
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return "".join([*kept, text[at:]])


def widened(text: str, span: tuple[int, int], opening: Sequence[str], closing: Sequence[str]) -> tuple[int, int]:
    """`span` with an opening mark right before it and a closing mark right after it, blanks between them included."""
    start, end = span
    before = start
    while before > 0 and text[before - 1].isspace():
        before -= 1
    start = next((before - len(mark) for mark in opening if text.endswith(mark, 0, before)), start)
    after = spaced(text, end)
    end = next((after + len(mark) for mark in closing if text.startswith(mark, after)), end)
    return start, end


def first_mark(text: str, marks: Sequence[str]) -> str:
    """The first of `marks` that stands in `text`, or ""."""
    return next((mark for mark in marks if mark in text), "")


def known_name(name: str, tools: Tools) -> str:
    """`name` without the namespace that some families write before it (`functions.search`)."""
    return name if name in tools else re.sub(r"^functions[.:]", "", name)
