"""Schemas of tools: which may be offered to a model, how they are read, and how those of other libraries become ours.

LangChain's tools and OpenAI's function schemas become ours, and ours OpenAI's. Knows JSON schema and the shapes of
those libraries, not their packages: nothing is imported. Refuses to know tokenizers: a chat format checks what its
vocabulary adds.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ToolError
from arpo.terminal_safe import terminal_safe
from arpo.threads import settled
from arpo.tools import CallContext, JsonSchema, Tool, ToolBase, ToolResult
from arpo.tools.function import as_result

NAME = re.compile(r"\w(?:[\w.\-/: ]*[\w.\-/:])?")
NAME_CHARS = 128
SCHEMA_CHARS = 200_000
BOOLEAN: Mapping[bool, Mapping[str, Any]] = {True: {}, False: {"not": {}}}  # what a boolean schema is short for


def checked_schema(tool: ToolBase, where: str) -> JsonSchema:
    """The schema of `tool` in the form that the rest of arpo reads: an object whose properties are objects.

    Raises ConfigError where the tool's name, the name of a parameter, or the schema cannot be shown to a model.
    """
    name: object = tool.name
    description: object = tool.description
    schema: object = tool.schema
    hint = "Set its `name` in the recipe"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        wrong = "a tool's name has letters, digits, and . _ - / : or single blanks between them"
        raise ConfigError(wrong, where=where, value=name, hint=hint)
    if len(name) > NAME_CHARS:
        raise ConfigError(f"a tool's name has at most {NAME_CHARS} characters", where=where, value=name, hint=hint)
    if not isinstance(description, str):
        raise ConfigError(f"the description of the tool {name} is no text", where=where, value=description)
    if not isinstance(schema, Mapping):
        raise ConfigError(f"the schema of the tool {name} is no object", where=where, value=schema)
    try:
        if len(json.dumps(dict(schema))) > SCHEMA_CHARS:
            raise ConfigError(f"the schema of the tool {name} has more than {SCHEMA_CHARS:,} characters", where=where)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the schema of the tool {name} is not JSON: {error}", where=where) from error
    return _object_schema(schema, name, where)


def _object_schema(schema: JsonSchema, tool: str, where: str) -> JsonSchema:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if schema.get("type", "object") not in ("object", ["object"]) or not isinstance(properties, Mapping):
        value = schema.get("type") if isinstance(properties, Mapping) else properties
        raise ConfigError(f"the arguments of the tool {tool} are no object with properties", where=where, value=value)
    if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
        raise ConfigError(f"`required` of the tool {tool} is no list of names", where=where, value=required)
    whole: dict[str, Any] = {}
    for name, about in [*properties.items(), *((name, {}) for name in required if name not in properties)]:
        if not name.strip() or name != terminal_safe(name) or not name.isprintable():
            wrong = f"a parameter of the tool {tool} has a name that is empty or holds control characters"
            raise ConfigError(wrong, where=where, value=name)
        if not isinstance(about, Mapping | bool):
            raise ConfigError(f"the parameter {name} of the tool {tool} has no schema", where=where, value=about)
        whole[name] = BOOLEAN[about] if isinstance(about, bool) else about
    return schema if whole == properties else {**schema, "properties": whole}


def resolved(schema: Any, whole: JsonSchema) -> JsonSchema:
    """`schema` with its `$ref` into `whole` followed (pydantic writes classes as `{"$ref": "#/$defs/Place"}`), and
    `{}` for what accepts anything: `true`, a reference to nothing, or one that leads back to itself."""
    passed: list[str] = []
    beside: dict[str, Any] = {}  # what stands next to a reference counts
    while isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
        if reference in passed:
            return beside
        passed.append(reference)
        beside = {**{key: value for key, value in schema.items() if key != "$ref"}, **beside}
        schema = target_of(reference, whole)
    if isinstance(schema, bool):
        schema = BOOLEAN[schema]
    return {**schema, **beside} if isinstance(schema, Mapping) else beside


def target_of(reference: str, whole: Any) -> Any:
    """The schema at a JSON pointer (RFC 6901) in the document itself; None where there is none."""
    if not reference.startswith("#"):
        return None  # another document, which is not fetched
    for step in reference.removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(whole, Mapping):
            whole = whole.get(step)
        elif isinstance(whole, list) and step.isdecimal() and int(step) < len(whole):
            whole = whole[int(step)]
        else:
            return None
    return whole


# --- other libraries


class ForeignTool(ToolBase):
    """A function with a schema that somebody else wrote. Its arguments are handed over as the model gave them, by
    name."""

    def __init__(self, function: Callable[..., Any], name: str, description: str, schema: JsonSchema) -> None:
        self._function = function
        self.name, self.description, self.schema = name, description, schema

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        known = self.schema.get("properties", {})
        if unknown := [
            name for name in arguments if name not in known and self.schema.get("additionalProperties") is False
        ]:
            return ToolResult(text=f"{self.name} has no argument {unknown[0]!r}", status=CallStatus.REFUSED)
        result = await settled(partial(self._function, **arguments))
        return result if isinstance(result, ToolResult) else as_result(result)


def from_openai(function: Callable[..., Any], schema: Mapping[str, Any]) -> Tool:
    """`function` offered by an OpenAI-style schema: `{"type": "function", "function": {"name", "description",
    "parameters"}}`, the inner mapping alone, or the flat form of the Responses API. Raises ConfigError for anything
    else."""
    inner = schema.get("function", schema)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ConfigError("a function schema has a name", where="schema", value=json.dumps(schema, default=str)[:200])
    parameters = inner.get("parameters") or inner.get("input_schema") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        wrong = parameters.get("type") if isinstance(parameters, Mapping) else parameters
        raise ConfigError("the parameters of a function are an object", where="schema.parameters", value=wrong)
    return ForeignTool(function, inner["name"], " ".join(str(inner.get("description") or "").split()), dict(parameters))


def from_langchain(tool: Any) -> Tool:
    """A LangChain tool (anything with name, description, `invoke` or `ainvoke`) as one of ours. What it raises as its
    own ToolException is shown to the model. Raises ConfigError for anything else."""
    if not all(hasattr(tool, name) for name in ("name", "description", "invoke", "ainvoke")):
        raise ConfigError(
            "not a LangChain tool: it needs name, description, invoke and ainvoke",
            where="tool",
            value=type(tool).__name__,
        )

    async def run(**arguments: Any) -> Any:
        try:
            result = await tool.ainvoke(arguments)
        except Exception as error:  # the boundary around tools tells its text; here it only loses the foreign name
            if type(error).__name__ == "ToolException":
                raise ToolError(str(error)) from None
            raise
        return getattr(result, "content", result)

    return ForeignTool(run, tool.name, " ".join(str(tool.description).split()), _langchain_schema(tool))


def to_openai(tool: Tool, name: str = "") -> dict[str, Any]:
    """The schema by which an OpenAI-compatible endpoint is told of `tool`, by its own name or by `name`."""
    return {
        "type": "function",
        "function": {"name": name or tool.name, "description": tool.description, "parameters": dict(tool.schema)},
    }


def _langchain_schema(tool: Any) -> dict[str, Any]:
    given = getattr(tool, "tool_call_schema", None) or getattr(tool, "args_schema", None)
    if isinstance(given, Mapping):
        return dict(given)
    if given is not None and hasattr(given, "model_json_schema"):
        schema: dict[str, Any] = given.model_json_schema()
        return {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {"type": "object", "properties": dict(getattr(tool, "args", {}))}
