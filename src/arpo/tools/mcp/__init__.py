"""Tools of an MCP server, a program (stdio) or a service (streamable HTTP), through the official SDK (extra `mcp`).

Knows the tools of a server and their results as text; `arpo.tools.mcp.session` knows the connection. All branches share
one session, and so the state that a server keeps per session.
"""

import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ProviderError, nearest
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult
from arpo.tools.mcp.session import Server, over_http, started
from arpo.tools.recorded import server_of


def mcp_tools(
    *,
    command: str | Sequence[str] = "",
    url: str = "",
    tools: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    folder: str = "",
    connect_s: float = 30.0,
    keep: bool = False,
) -> "list[McpTool]":
    """The tools of a server, or those in `tools`. `command` starts one (`["python", "server.py"]`), or `url` names one.

    `env` of the program (it gets PATH, HOME and the like, and no secrets of ours) and `headers` of requests may name
    environment variables: `{Authorization: "Bearer $MY_TOKEN"}`. `keep`: equal calls give equal results, so that they
    may be cached. Raises ConfigError where the server cannot be reached, lacks a tool or describes it wrongly.
    """
    if bool(command) == bool(url):
        raise ConfigError(
            "an MCP server is a `command` to start or a `url`", where="command" if command else "url", value=url or None
        )
    label = server_of(command, url)
    if url:
        opener, errors = over_http(url, _expanded(headers, "headers"), connect_s), None
    else:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  lives as long as the server
        opener = started(words, _expanded(env, "env"), folder, errors)
    server = Server(opener, label, connect_s, errors)
    where = "command" if command else "url"
    try:
        listed, malformed = server.list_tools()
    except ProviderError as error:
        raise ConfigError(str(error), where=where, value=label) from error
    offered = {tool.name: tool for tool in listed}
    for name in tools or malformed:
        if name in malformed:
            wrong = f"the server describes its tool {name} wrongly: {malformed[name]}"
            hint = f"Name tools that you need in `tools`: {', '.join(offered)[:300]}" if offered else "Mend the server"
            raise ConfigError(wrong, where=where, value=label, hint=hint)
    for name in tools:
        if name not in offered:
            raise ConfigError("the server has no such tool", where="tools", value=name, hint=nearest(name, offered))
    if not offered:
        raise ConfigError("the server has no tools", where=where, value=label)
    return [McpTool(server, offered[name], keep) for name in tools or offered]


class McpTool(ToolBase):
    """One tool of a server. The model reads an error that the server reports or that ends it; a server that fails
    whatever it is asked is a ProviderError."""

    def __init__(self, server: "Server", tool: Any, keep: bool) -> None:
        self._server, self._remote = server, tool.name
        self.name: str = tool.name
        self.description: str = " ".join((tool.description or tool.title or tool.name).split())
        self.schema: JsonSchema = tool.input_schema or {"type": "object", "properties": {}}
        self.provider, self.cacheable = server.label, keep
        self.read_only = bool(tool.annotations and tool.annotations.read_only_hint)  # as the server says of itself
        self.offer = {"name": self.name, "description": self.description, "schema": self.schema}  # noted in a record

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        result = await self._server.call(self._remote, dict(arguments))
        text = as_text(result)
        return ToolResult(text=text, status=CallStatus.ERROR if result.is_error else CallStatus.OK, empty=not text)


def _expanded(given: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """`$NAME` filled in from the environment, so that no recipe needs to hold a secret."""
    try:
        return {name: Template(str(value)).substitute(os.environ) for name, value in (given or {}).items()}
    except KeyError as error:
        hint = f"Set the environment variable {error.args[0]}"
        raise ConfigError("an environment variable is missing", where=where, value=error.args[0], hint=hint) from None
    except ValueError as error:
        raise ConfigError(f"{error}", where=where, hint="$NAME is an environment variable, $$ a dollar") from None


def as_text(result: Any) -> str:
    """A result as the model reads it: its texts; pictures and sounds by their type; structured content where there is
    no text."""
    parts = [_block(block) for block in result.content]
    if not any(parts) and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(part for part in parts if part)


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource":
        resource = block.resource
        return (
            str(getattr(resource, "text", ""))
            or f"[{getattr(resource, 'mime_type', None) or 'resource'}: {resource.uri}]"
        )
    if block.type == "resource_link":
        return f"[{block.name}: {block.uri}]"
    return f"[{getattr(block, 'mime_type', None) or block.type}]"
