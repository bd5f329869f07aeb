"""Tools of a recorded server, for a replay: it starts no server and needs none of its packages.

Knows which tools a server offered when its calls were recorded. Refuses to know their results: `arpo.tools.cache` has
those.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from arpo.errors import ConfigError, ToolError, nearest
from arpo.tools import CallContext, ToolBase, ToolResult

Offers = Mapping[str, Sequence[Mapping[str, Any]]]  # by server: name, description and schema of each tool


class RecordedTool(ToolBase):
    """A tool of a recorded server. Calling it raises ToolError: its results are in the record."""

    cacheable = True

    def __init__(self, server: str, offer: Mapping[str, Any]) -> None:
        self.name, self.description, self.schema = offer["name"], offer["description"], offer["schema"]
        self.provider = server

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        raise ToolError(f"{self.name} is known from a record alone: its server was not started")


def server_of(command: str | Sequence[str], url: str) -> str:
    """The identity of a server: its URL, or the command that starts it."""
    return url or (command if isinstance(command, str) else shlex.join(map(str, command)))


def recorded_tools(options: Mapping[str, Any], offers: Offers) -> list[RecordedTool]:
    """The tools that the server with these options (`command` or `url`, and `tools`) offered. Raises ConfigError."""
    server = server_of(options.get("command", ""), options.get("url", ""))
    if server not in offers:
        hint = "Run once with tools.mode=record: that notes them, and calls no tool whose result is there"
        raise ConfigError("the record does not say what tools this server has", where="mcp", value=server, hint=hint)
    known = {offer["name"]: offer for offer in offers[server]}
    wanted = options.get("tools") or list(known)
    for name in wanted:
        if name not in known:
            raise ConfigError(
                "the record knows no such tool of this server", where="tools", value=name, hint=nearest(name, known)
            )
    return [RecordedTool(server, known[name]) for name in wanted]
