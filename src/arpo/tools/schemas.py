"""Tools of other libraries: LangChain's tools and OpenAI's function schemas become ours, and ours OpenAI's.

Knows their shapes, not their packages: nothing is imported.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ToolError
from arpo.threads import settled
from arpo.tools import CallContext, JsonSchema, Tool, ToolBase, ToolResult
from arpo.tools.function import as_result


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
    if parameters.get("type") != "object":
        raise ConfigError(
            "the parameters of a function are an object", where="schema.parameters", value=parameters.get("type")
        )
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


def to_openai(tool: Tool) -> dict[str, Any]:
    """The schema by which an OpenAI-compatible endpoint is told of `tool`."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)},
    }


def _langchain_schema(tool: Any) -> dict[str, Any]:
    given = getattr(tool, "tool_call_schema", None) or getattr(tool, "args_schema", None)
    if isinstance(given, Mapping):
        return dict(given)
    if given is not None and hasattr(given, "model_json_schema"):
        schema: dict[str, Any] = given.model_json_schema()
        return {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {"type": "object", "properties": dict(getattr(tool, "args", {}))}
