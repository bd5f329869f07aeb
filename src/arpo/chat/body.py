"""Converts between a call's arguments and the text in its tag.

    one argument            <search>capital of France</search>        the text is the argument
    several arguments       <lookup>{"place": "Peru", "year": 2020}</lookup>

Knows the tools' schemas. Refuses to check values: `tools.call` does.
"""

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arpo.chat.json_text import read_object, read_value
from arpo.core.tree import Call
from arpo.errors import ConfigError
from arpo.tools import JsonSchema, Tool
from arpo.tools.schemas import resolved, target_of

MOST_NESTED = 8  # choices inside of choices: a schema may refer to itself

KINDS: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def arguments_of(schema: JsonSchema, depth: int = 0) -> tuple[dict[str, Any], list[str], bool]:
    """(properties, names of the required ones, whether further names are allowed) of a tool's schema, with `$ref`,
    `allOf`, `anyOf` and `oneOf` at its top followed: of alternatives all properties, and as required what all require.
    """
    return _arguments(schema, schema, depth)


def _arguments(schema: object, whole: JsonSchema, depth: int) -> tuple[dict[str, Any], list[str], bool]:
    one = resolved(schema, whole)
    own = one.get("properties")
    properties: dict[str, Any] = dict(own) if isinstance(own, Mapping) else {}
    required = names_in(one.get("required"))
    further = one.get("additionalProperties")
    free = further is True or isinstance(further, Mapping) or "patternProperties" in one
    if depth >= MOST_NESTED:
        return properties, required, free
    for part in _listed(one, "allOf"):
        inner, needed, more = _arguments(part, whole, depth + 1)
        properties, required, free = {**inner, **properties}, [*required, *needed], free or more
    if options := [_arguments(part, whole, depth + 1) for part in (*_listed(one, "anyOf"), *_listed(one, "oneOf"))]:
        properties = {name: each for inner, _, _ in options for name, each in inner.items()} | properties
        required += [name for name in options[0][1] if all(name in needed for _, needed, _ in options)]
        free = free or any(more for _, _, more in options)
    return properties, list(dict.fromkeys(required)), free


def names_in(required: object) -> list[str]:
    """The names in a schema's `required`; what is none, or no list, is passed over."""
    return [name for name in required if isinstance(name, str)] if isinstance(required, list | tuple) else []


def _listed(schema: JsonSchema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def text_argument(schema: JsonSchema) -> str | None:
    """The argument that the text of a tag sets: the only one, or the only required one. None if the tag needs JSON."""
    properties, required, free = arguments_of(schema)
    if len(properties) == 1 and not free:
        return next(iter(properties))
    return required[0] if len(required) == 1 and required[0] in properties else None


def argument_names(tool: Tool) -> str:
    """The placeholder for an empty tag of the tool: the name of its argument, or the JSON that it expects."""
    argument = text_argument(tool.schema)
    names, _, free = arguments_of(tool.schema)
    if argument is not None:
        inner = resolved(names.get(argument, {}), tool.schema).get("properties", {})
        if not inner or not isinstance(inner, Mapping):
            return argument
        names, free = dict(inner), False
    parts = [*(f'"{name}": …' for name in names), *(["…"] if free else [])]
    return "{" + ", ".join(parts) + "}" if parts else ""


def check_readable(tool: Tool) -> None:
    """Raises ConfigError, which names the tool, where its schema refers to what it does not hold: then nobody knows
    which types its arguments have."""
    missing = [reference for reference in _references(tool.schema) if not _is_there(reference, tool.schema)]
    if missing:
        wrong = f"the schema of the tool {tool.name} refers to {missing[0]!r}, which it does not hold"
        raise ConfigError(wrong, where="tools", value=tool.name, hint="Write that schema into it, under $defs")


def _references(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _references(inner)


def _is_there(reference: str, whole: JsonSchema) -> bool:
    return target_of(reference, whole) is not None


def read_body(tool: Tool, body: str) -> Call:
    """The call that the text in the tag of `tool` makes. A malformed call becomes `Call(error=...)`."""
    properties, required, free = arguments_of(tool.schema)
    body = body.strip("\r\n")
    body = body if "\n" in body else body.strip()
    if not properties and not free:
        return Call(name=tool.name)
    if not body.strip():
        if not required:
            return Call(name=tool.name)
        return Call(name=tool.name, error=f"<{tool.name}> is empty: write {argument_names(tool)} in it")
    argument = text_argument(tool.schema)
    values = read_object(body)
    names_it = len(properties) != 1 or argument is None or (values is not None and argument in values)
    if values is not None and names_it and (free or values.keys() <= properties.keys()):
        return Call(name=tool.name, arguments=values, mended=read_value(body).mended)
    if argument is None:
        return Call(name=tool.name, error=f"<{tool.name}> needs a JSON object: {argument_names(tool)}")
    return Call(name=tool.name, arguments={argument: typed(body, properties.get(argument, {}), tool.schema)})


def write_body(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """The text for the tag of `tool`, from which `read_body` returns the same arguments: the bare value of a single one
    where that reads back, else a JSON object."""
    argument = text_argument(tool.schema)
    whole = json.dumps(dict(arguments), ensure_ascii=False) if arguments else ""
    if argument is None or set(arguments) != {argument}:
        return whole
    value = arguments[argument]
    bare = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    read = read_body(tool, bare)
    same = not read.error and json.dumps(dict(read.arguments), sort_keys=True) == json.dumps(
        dict(arguments), sort_keys=True
    )
    return bare if same else whole


def typed(text: str, schema: object, whole: JsonSchema) -> object:
    """The value of an argument that was written as bare text: one that `schema` lists, the text where it takes text
    (except for `null` where it takes that as well), else what the text spells in JSON or Python, else the text itself,
    which the check of the arguments will refuse."""
    return typer(schema, whole)(text)


def typer(schema: object, whole: JsonSchema) -> Callable[[str], object]:
    """`typed` for many values of one schema."""
    listed, kinds = _values(schema, whole), _kinds(schema, whole)

    def read(text: str) -> object:
        for value in listed:
            if value == text or (not isinstance(value, str) and json.dumps(value) == text.strip()):
                return value
        if "null" in kinds and text.strip() in ("null", "None"):
            return None
        return text if not kinds or "string" in kinds else _spelled(text)

    return read


def _spelled(text: str) -> object:
    """The value that a text spells in JSON or, as some templates write True and None, in Python; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            value: object = read(text.strip())
            json.dumps(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return value
    return text


def _values(schema: object, whole: JsonSchema, depth: int = 0) -> list[Any]:
    """The values that a schema lists (`enum`, `const`), also in its alternatives."""
    one = resolved(schema, whole)
    values = [*_listed(one, "enum"), *([one["const"]] if "const" in one else [])]
    for part in (*_listed(one, "anyOf"), *_listed(one, "oneOf"), *_listed(one, "allOf")):
        values += _values(part, whole, depth + 1) if depth < MOST_NESTED else []
    return values


def _kinds(schema: object, whole: JsonSchema, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows; empty if it names none."""
    one = resolved(schema, whole)
    own = one.get("type", ())
    kinds = frozenset([own] if isinstance(own, str) else own if isinstance(own, list) else ())
    if not kinds and (values := [*_listed(one, "enum"), *([one["const"]] if "const" in one else [])]):
        kinds = frozenset(KINDS.get(type(value), "string") for value in values)
    if depth >= MOST_NESTED:
        return kinds
    if options := [*_listed(one, "anyOf"), *_listed(one, "oneOf")]:
        inner = [_kinds(option, whole, depth + 1) or {"string"} for option in options]
        kinds = (kinds or frozenset().union(*inner)) & frozenset().union(*inner)
    for part in _listed(one, "allOf"):
        narrowed = _kinds(part, whole, depth + 1)
        kinds = kinds & narrowed if kinds and narrowed else kinds or narrowed
    return kinds
