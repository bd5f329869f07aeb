"""A tool that counts its calls, and one behind its gateway."""

import asyncio
from pathlib import Path
from typing import Any

from arpo.core.tree import Call, ToolCallResult
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase
from arpo.tools.config import ToolsConfig
from arpo.tools.gateway import build_gateway

CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)), deadline_s=5.0, seed=7
)


class Search(ToolBase):
    """Counts its calls; `reply` says what becomes of each, by its number from 0."""

    description = "Finds facts."
    schema = {"type": "object", "properties": {"query": {"type": "string"}, "k": {"type": "integer", "default": 3}}}  # noqa: RUF012
    cacheable = True
    provider = "web"

    def __init__(self, reply: Any = None, seconds: float = 0.0, name: str = "search") -> None:
        self.reply, self.seconds, self.name = reply, seconds, name
        self.calls = self.at_once = self.most_at_once = 0
        self.starts: list[float] = []

    async def __call__(self, arguments: Any, context: CallContext) -> Any:
        number = self.calls
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.starts.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(self.seconds)
            reply = self.reply(number) if self.reply else f"found {arguments.get('query')}"
            if isinstance(reply, Exception):
                raise reply
            return reply
        finally:
            self.at_once -= 1


class Gated:
    """A tool behind its gateway."""

    def __init__(self, tool: Any, tmp_path: Path | None = None, **config: Any) -> None:
        file = {"cache": {"file": str(tmp_path / "calls.sqlite"), **config.pop("cache", {})}} if tmp_path else {}
        self.tool, self.said = tool, []
        self.tool_gateway = build_gateway(ToolsConfig(offered=(tool,), **file, **config), [(tool,)])
        self.tool_gateway.tell = lambda text, level: self.said.append(text)

    async def __call__(self, query: str = "x", **more: Any) -> ToolCallResult:
        call = Call(name=self.tool.name, arguments={"query": query, **more})
        return await self.tool_gateway.call({self.tool.name: self.tool}, call, CONTEXT)


def live(reply: Any, **config: Any) -> Gated:
    tool = Search(reply)
    tool.cacheable = False
    return Gated(tool, **config)
