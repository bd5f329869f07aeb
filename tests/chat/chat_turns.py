"""Tools, turns and outcomes that the tests of both chat formats write."""

from array import array
from types import SimpleNamespace

from arpo.core.tree import Call, CallStatus, Role, ToolCallResult, Turn
from arpo.tasks import Task
from arpo.tools.function import tool


@tool
def search(query: str) -> str:
    """Finds facts."""
    return query


@tool
def python(code: str) -> str:
    """Runs code."""
    return code


@tool
def lookup(place: str, year: int) -> str:
    """Looks a number up."""
    return f"{place} {year}"


TOOLS = [search, python, lookup]


def step(thought: str = "", calls: tuple[Call, ...] = (), answer: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(thought=thought, text="", calls=calls, answer=answer)


def turn(tokens: object, calls: tuple[Call, ...] = ()) -> Turn:
    empty = array("f")
    return Turn(place=(0,), role=Role.ROOT, tokens=array("i", tokens), logprobs=empty, entropies=empty, calls=calls)


def outcome(text: str, name: str = "search") -> ToolCallResult:
    return ToolCallResult(tool=name, status=CallStatus.OK, text=text)


def task(text: str) -> Task:
    return Task(id="t", messages=({"role": "user", "content": text},), answers=("x",))
