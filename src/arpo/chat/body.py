"""Converts between a call's arguments and the text in its tag.

    one argument            <search>capital of France</search>        the text is the argument
    several arguments       <lookup>{"place": "Peru", "year": 2020}</lookup>

Knows the tools' schemas. Refuses to check values: `tools.call` does.
"""

import json
from collections.abc import Mapping
from typing import Any

from arpo.core.tree import Call
from arpo.tools import JsonSchema, Tool
from arpo.tools.schemas import resolved

MOST_NESTED = 8  # choices inside of choices: a schema may refer to itself


def text_argument(schema: JsonSchema) -> str | None:
    """The argument that the text of a tag sets: the only one, or the only required one. None if the tag needs JSON."""
    properties, required = list(schema.get("properties", {})), list(schema.get("required", ()))
    if len(properties) == 1:
        return str(properties[0])
    return str(required[0]) if len(required) == 1 else None


def argument_names(tool: Tool) -> str:
    """The placeholder for an empty tag of the tool: the name of its argument, or the JSON that it expects."""
    argument = text_argument(tool.schema)
    names = tool.schema.get("properties", {})
    if argument is not None:
        names = resolved(names.get(argument, {}), tool.schema).get("properties", {})
        if not names or not isinstance(names, Mapping):
            return argument
    return "{" + ", ".join(f'"{name}": …' for name in names) + "}" if names else ""


def read_body(tool: Tool, body: str) -> Call:
    """The call that the text in the tag of `tool` makes. A malformed call becomes `Call(error=...)`."""
    properties: Mapping[str, Any] = tool.schema.get("properties", {})
    body = body.strip("\r\n")
    body = body if "\n" in body else body.strip()
    if not properties:
        return Call(name=tool.name)
    if not body.strip():
        return Call(name=tool.name, error=f"<{tool.name}> is empty: write {argument_names(tool)} in it")
    argument = text_argument(tool.schema)
    if argument is None or len(properties) > 1:
        values = read_object(body)
        if values is not None and values.keys() <= properties.keys():
            return Call(name=tool.name, arguments=values)
    if argument is None:
        return Call(name=tool.name, error=f"<{tool.name}> needs a JSON object: {argument_names(tool)}")
    return Call(name=tool.name, arguments={argument: _typed(body, properties.get(argument, {}), tool.schema)})


def write_body(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """The text for the tag of `tool`, from which `read_body` returns the same arguments."""
    argument = text_argument(tool.schema)
    value = arguments.get(argument) if argument is not None else None
    ambiguous = len(tool.schema.get("properties", {})) > 1 and isinstance(value, Mapping)  # its keys could be arguments
    if argument is not None and set(arguments) == {argument} and not ambiguous:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(dict(arguments), ensure_ascii=False) if arguments else ""


def _typed(body: str, schema: JsonSchema, whole: JsonSchema) -> object:
    if _takes_text(schema, whole):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body  # the check of the arguments reports the error


def _takes_text(schema: JsonSchema, whole: JsonSchema, depth: int = 0) -> bool:
    schema = resolved(schema, whole)
    options = schema.get("anyOf")
    if isinstance(options, list) and options:
        return depth < MOST_NESTED and any(_takes_text(option, whole, depth + 1) for option in options)
    kinds = schema.get("type", "string")
    return "string" in kinds if isinstance(kinds, list) else bool(kinds == "string")


def read_object(text: str) -> dict[str, Any] | None:
    """`text` as a JSON object; None for anything else, and for an object that contains a lone surrogate."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
