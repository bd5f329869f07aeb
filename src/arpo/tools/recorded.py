"""Tools of a server as a record of their calls knows them: for a replay, which starts no server and needs no package of it.

Knows what a server offered when its calls were recorded. Refuses to know what it answered: that is in the record too
(`arpo.tools.cache`), and never asked of the tools here.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from arpo.errors import ConfigError, ToolError, nearest
from arpo.tools import CallContext, ToolBase, ToolResult

Offers = Mapping[str, Sequence[Mapping[str, Any]]]  # by server: name, description and schema of each tool


class RecordedTool(ToolBase):
    """One of them. Raises ToolError where it is called all the same."""

    cacheable = True

    def __init__(self, server: str, offer: Mapping[str, Any]) -> None:
        self.name, self.description, self.schema = offer["name"], offer["description"], offer["schema"]
        self.provider = server

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        raise ToolError(f"{self.name} is known from a record alone: its server was not started")


def server_of(command: str | Sequence[str], url: str) -> str:
    """By what a server is told from others: where it is, or what starts it."""
    return url or (command if isinstance(command, str) else shlex.join(map(str, command)))


def recorded_tools(options: Mapping[str, Any], offers: Offers) -> list[RecordedTool]:
    """The tools that a server (`command` or `url`, perhaps some of its `tools`) offered. Raises ConfigError."""
    server = server_of(options.get("command", ""), options.get("url", ""))
    if server not in offers:
        hint = "Run once with tools.mode=record: that notes them, and calls no tool whose result is there"
        raise ConfigError("the record does not say what tools this server has", where="mcp", value=server, hint=hint)
    known = {offer["name"]: offer for offer in offers[server]}
    wanted = options.get("tools") or list(known)
    for name in wanted:
        if name not in known:
            raise ConfigError("the record knows no such tool of this server", where="tools", value=name, hint=nearest(name, known))
    return [RecordedTool(server, known[name]) for name in wanted]
