"""What stands in a tag and the call that it means, for arguments of every type that a function may ask for."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.chat.body import argument_names, check_readable, read_body, write_body
from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.function import tool
from arpo.tools.schemas import from_openai

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


# --- any schema

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXTS,
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "boolean": st.booleans(),
    "null": st.none(),
    "array": st.lists(st.integers() | TEXTS, max_size=2),
    "object": st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2),
}
DEFS = {kind: {"type": kind} for kind in VALUES}
LISTED = st.lists(
    st.one_of(*(VALUES[kind] for kind in ("string", "integer", "boolean", "null"))), min_size=1, max_size=3
)


def of_kind(kind: str) -> st.SearchStrategy[tuple[dict[str, Any], Any]]:
    """A schema of one type, written in one of the usual ways, and a value that it allows."""
    other = "array" if kind != "array" else "boolean"
    forms: list[dict[str, Any]] = [
        {"type": kind},
        {"type": [kind, "null"]},
        {"anyOf": [{"type": kind}, {"type": "null"}]},
        {"oneOf": [{"type": other}, {"type": kind}]},
        {"allOf": [{"type": kind}, {"description": "x"}]},
        {"$ref": f"#/$defs/{kind}", "description": "x"},
        {"allOf": [{"$ref": f"#/$defs/{kind}"}]},
    ]
    return st.tuples(st.sampled_from(forms), VALUES[kind])


SCHEMAS = st.one_of(
    *map(of_kind, VALUES),
    LISTED.flatmap(lambda listed: st.tuples(st.just({"enum": listed}), st.sampled_from(listed))),
    st.one_of(*VALUES.values()).map(lambda value: ({"const": value}, value)),
    st.one_of(*VALUES.values()).map(lambda value: ({}, value)),
)


def offered(parameters: dict[str, Any]) -> Any:
    return from_openai(
        lambda **arguments: "", {"name": "t", "parameters": {"type": "object", "$defs": DEFS, **parameters}}
    )


def same(one: object, other: object) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(
    st.dictionaries(st.sampled_from("abc"), st.tuples(SCHEMAS, st.booleans(), st.booleans()), max_size=3),
    st.sampled_from(["plain", "allOf", "anyOf", "$ref"]),
)
def test_arguments_arrive_as_the_schema_has_them(given: dict[str, Any], top: str) -> None:
    """Whatever is written is read back, value and type; whatever way the schema is written."""
    properties = {name: schema for name, ((schema, _), _, _) in given.items()}
    required = [name for name, (_, needed, _) in given.items() if needed]
    inner = {"properties": properties, "required": required}
    forms: dict[str, dict[str, Any]] = {
        "plain": inner,
        "allOf": {"allOf": [inner, {"description": "x"}]},
        "anyOf": {"anyOf": [inner]},
        "$ref": {"$ref": "#/$defs/inner", "$defs": {**DEFS, "inner": inner}},
    }
    called = offered(forms[top])
    arguments = {name: value for name, ((_, value), needed, made) in given.items() if needed or made}
    call = read_body(called, write_body(called, arguments))
    assert not call.error and same(dict(call.arguments), arguments)


@given(st.one_of(*(of_kind(kind) for kind in ("integer", "boolean", "array", "object", "number"))))
def test_a_bare_value_has_the_type_of_its_schema(given: tuple[dict[str, Any], Any]) -> None:
    """As models write it: without the name of the only argument."""
    schema, value = given
    body = json.dumps(value)
    call = read_body(offered({"properties": {"qz": schema}, "required": ["qz"]}), body)
    assert same(call.arguments["qz"], value)


def test_choices_and_nulls_that_are_written_bare() -> None:
    def read(schema: dict[str, Any], body: str) -> object:
        return read_body(offered({"properties": {"x": schema}, "required": ["x"]}), body).arguments["x"]

    assert read({"enum": [1, 2, "three"]}, "2") == 2 and read({"enum": [1, 2, "three"]}, "three") == "three"
    assert read({"const": True}, "true") is True and read({"enum": ["1", "2"]}, "1") == "1"
    assert read({"type": ["string", "null"]}, "null") is None and read({"type": "string"}, "null") == "null"


def test_a_free_form_object_takes_any_key() -> None:
    free = offered({"additionalProperties": True})
    assert read_body(free, '{"a": 1}').arguments == {"a": 1} and read_body(free, "").arguments == {}
    assert "JSON object" in read_body(free, "words").error and argument_names(free) == "{…}"


def test_a_schema_that_refers_to_nothing_is_refused_by_the_tools_name() -> None:
    with pytest.raises(ConfigError, match=r"tool t refers to 'https://x/y\.json'"):
        check_readable(offered({"properties": {"x": {"items": {"$ref": "https://x/y.json"}}}}))
    check_readable(offered({"properties": {"x": {"$ref": "#/$defs/string"}}}))


def test_a_raw_line_end_inside_of_json_is_read_and_reported() -> None:
    call = read_body(with_unit, '{"place": {"city": "Li\nma"}, "unit": "m"}')
    assert call.arguments == {"place": {"city": "Li\nma"}, "unit": "m"} and call.mended
