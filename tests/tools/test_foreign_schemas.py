"""Tools of other libraries work as ours do."""

from typing import Any

import pytest

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.function import tool as ours
from arpo.tools.schemas import from_langchain, from_openai, to_openai

CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=()), deadline_s=10, seed=0
)
SCHEMA = {
    "name": "convert",
    "description": "Converts a\n  distance.",
    "parameters": {
        "type": "object",
        "properties": {"amount": {"type": "number"}, "unit": {"type": "string", "enum": ["km", "m"]}},
        "required": ["amount"],
        "additionalProperties": False,
    },
}


def convert(amount: float, unit: str = "km") -> dict[str, Any]:
    return {"miles": amount / (1.609 if unit == "km" else 1609)}


async def convert_later(amount: float, unit: str = "km") -> dict[str, Any]:
    return convert(amount, unit)


async def call(tool: Any, **arguments: Any) -> Any:
    return await run_call([tool], Call(name=tool.name, arguments=arguments), CONTEXT)


@pytest.mark.parametrize("schema", [{"type": "function", "function": SCHEMA}, SCHEMA, {"type": "function", **SCHEMA}])
@pytest.mark.parametrize("function", [convert, convert_later])
async def test_a_function_with_an_openai_schema(schema: dict[str, Any], function: Any) -> None:
    tool = from_openai(function, schema)
    assert (tool.name, tool.description) == ("convert", "Converts a distance.")
    done = await call(tool, amount=16.09)
    assert done.status is CallStatus.OK and done.text == '{"miles": 10.0}'
    assert (await call(tool, amount=1, colour="red")).status is CallStatus.REFUSED
    assert (await call(tool)).status is CallStatus.REFUSED
    assert (await call(tool, amount="x")).status is CallStatus.ERROR
    assert to_openai(tool)["function"]["parameters"] == SCHEMA["parameters"]


def test_ours_becomes_openais_and_back() -> None:
    @ours
    def shout(text: str) -> str:
        """Shouts."""
        return text.upper()

    there = to_openai(shout)
    back = from_openai(str.upper, there)
    assert (back.name, back.description, dict(back.schema)) == (shout.name, shout.description, dict(shout.schema))


def test_what_is_no_schema_is_refused() -> None:
    for schema in ({}, {"function": 3}, {"name": "x", "parameters": {"type": "array"}}):
        with pytest.raises(ConfigError):
            from_openai(convert, schema)
    with pytest.raises(ConfigError, match="LangChain"):
        from_langchain(convert)


async def test_langchain_tools() -> None:
    tools = pytest.importorskip("langchain_core.tools")

    @tools.tool(parse_docstring=True)
    def population(country: str, year: int = 2020) -> str:
        """Population of a country.

        Args:
            country: English name.
            year: of the count.
        """
        if country == "Nowhere":
            raise tools.ToolException("no such country")
        return f"{country} {year}"

    @tools.tool
    async def later(text: str) -> list[str]:
        """Says it later."""
        return [text]

    made = from_langchain(population)
    assert made.name == "population" and made.description.startswith("Population of a country.")
    assert (
        made.schema["required"] == ["country"]
        and made.schema["properties"]["country"]["description"] == "English name."
    )
    assert (await call(made, country="Peru")).text == "Peru 2020"
    assert (await call(made, country="Peru", year=1999)).text == "Peru 1999"
    failed = await call(made, country="Nowhere")
    assert failed.status is CallStatus.ERROR and failed.text == "no such country"
    assert (await call(made, country="Peru", year="many")).status is CallStatus.ERROR
    assert (await call(from_langchain(later), text="a")).text == '["a"]'
