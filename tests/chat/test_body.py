"""What stands in a tag and the call that it means, for arguments of every type that a function may ask for."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from arpo.chat.body import argument_names, read_body, write_body
from arpo.core.tree import CallStatus
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.function import tool

CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)), deadline_s=5.0, seed=7
)


@dataclass
class Place:
    city: str
    country: str = "Peru"


@tool
def by_place(place: Place) -> str:
    """Looks a place up."""
    return f"{place.city}, {place.country}"


@tool
def with_unit(place: Place, unit: str = "km") -> str:
    """Looks a place up."""
    return f"{place.city} {unit}"


@tool
def named_alike(place: Place, city: str = "", country: str = "") -> str:
    """An argument of the class's own names."""
    return f"{place.city}/{city}"


@tool
def of_words(words: list[str] | None = None) -> str:
    """Joins words."""
    return "+".join(words or [])


@tool
def of_text(word: str | None = None) -> str:
    """Takes a word."""
    return repr(word)


@pytest.mark.parametrize(
    ("called", "arguments", "result"),
    [
        (by_place, {"place": {"city": "Lima"}}, "Lima, Peru"),
        (with_unit, {"place": {"city": "Lima"}}, "Lima km"),
        (with_unit, {"place": {"city": "Lima"}, "unit": "m"}, "Lima m"),
        (named_alike, {"place": {"city": "Lima"}}, "Lima/"),
        (of_words, {"words": ["a", "b"]}, "a+b"),
        (of_text, {"word": '{"a": 1}'}, "'{\"a\": 1}'"),
    ],
)
def test_what_is_written_is_read_back_and_the_tool_takes_it(
    called: Any, arguments: dict[str, Any], result: str
) -> None:
    call = read_body(called, write_body(called, arguments))
    assert call.arguments == arguments
    outcome = asyncio.run(run_call([called], call, CONTEXT))
    assert (outcome.status, outcome.text) == (CallStatus.OK, result)


def test_the_model_is_shown_what_a_structured_argument_holds() -> None:
    assert argument_names(by_place) == '{"city": …, "country": …}'
    assert read_body(by_place, '{"city": "Lima"}').arguments == {"place": {"city": "Lima"}}
