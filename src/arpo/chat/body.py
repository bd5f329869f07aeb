"""Between a call's arguments and the text that stands in its tag.

    one argument            <search>capital of France</search>        the text is the argument
    several arguments       <lookup>{"place": "Peru", "year": 2020}</lookup>

Knows the tools' schemas. Refuses to check values: the call's boundary does.
"""

import json
from collections.abc import Mapping
from typing import Any

from arpo.core.tree import Call
from arpo.tools import JsonSchema, Tool


def plain_argument(schema: JsonSchema) -> str | None:
    """The argument that a tag's text stands for: the only one, or the only required one; None where JSON is needed."""
    properties, required = list(schema.get("properties", {})), list(schema.get("required", ()))
    if len(properties) == 1:
        return str(properties[0])
    return str(required[0]) if len(required) == 1 else None


def argument_names(tool: Tool) -> str:
    """What to show in an empty tag of the tool: its argument's name, or the JSON it wants."""
    one = plain_argument(tool.schema)
    names = tool.schema.get("properties", {})
    if one is not None:
        names = resolved(names.get(one, {}), tool.schema).get("properties", {})
        if not names:
            return one
    return "{" + ", ".join(f'"{name}": …' for name in names) + "}" if names else ""


def resolved(schema: JsonSchema, whole: JsonSchema) -> JsonSchema:
    """`schema`, or what it refers to in `whole` (pydantic writes classes as `{"$ref": "#/$defs/Place"}`)."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    found = whole.get("$defs", {}).get(name)
    return found if isinstance(found, Mapping) else schema


def read_body(tool: Tool, body: str) -> Call:
    """The call that `body` in the tag of `tool` means; malformed ones come back as `Call(error=...)`."""
    properties: Mapping[str, Any] = tool.schema.get("properties", {})
    body = body.strip("\r\n")
    body = body if "\n" in body else body.strip()
    if not properties:
        return Call(name=tool.name)
    if not body.strip():
        return Call(name=tool.name, error=f"<{tool.name}> is empty: write {argument_names(tool)} in it")
    one = plain_argument(tool.schema)
    if one is None or len(properties) > 1:
        whole = read_object(body)
        if whole is not None and whole.keys() <= properties.keys():
            return Call(name=tool.name, arguments=whole)
    if one is None:
        return Call(name=tool.name, error=f"<{tool.name}> needs a JSON object: {argument_names(tool)}")
    return Call(name=tool.name, arguments={one: _typed(body, properties.get(one, {}), tool.schema)})


def write_body(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """The text for the tag of `tool`; `read_body` gives the same arguments back."""
    one = plain_argument(tool.schema)
    value = arguments.get(one) if one is not None else None
    several = len(tool.schema.get("properties", {})) > 1
    if one is not None and set(arguments) == {one} and not (several and isinstance(value, Mapping)):  # its keys could be arguments
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(dict(arguments), ensure_ascii=False) if arguments else ""


def _typed(body: str, schema: JsonSchema, whole: JsonSchema) -> object:
    if _takes_text(schema, whole):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body  # the tool's boundary says what it wanted


def _takes_text(schema: JsonSchema, whole: JsonSchema) -> bool:
    schema = resolved(schema, whole)
    if options := schema.get("anyOf"):
        return any(_takes_text(option, whole) for option in options)
    return bool(schema.get("type", "string") == "string")


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is; None for anything else, also where a string in it is no Unicode (a lone surrogate)."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
