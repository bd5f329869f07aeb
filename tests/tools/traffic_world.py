"""A tool that counts its calls, and one with its traffic."""

import asyncio
from pathlib import Path
from typing import Any

from arpo.core.tree import Call, Outcome
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.config import ToolsConfig
from arpo.tools.traffic import build_traffic

CONTEXT = CallContext(task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)), deadline_s=5.0, seed=7)


class Search:
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


class Asked:
    """A tool with its traffic."""

    def __init__(self, tool: Any, tmp_path: Path | None = None, **config: Any) -> None:
        file = {"cache": {"file": str(tmp_path / "calls.sqlite"), **config.pop("cache", {})}} if tmp_path else {}
        self.tool, self.said = tool, []
        self.traffic = build_traffic(ToolsConfig(offered=(tool,), **file, **config), [(tool,)])
        self.traffic.tell = lambda text, level: self.said.append(text)

    async def __call__(self, query: str = "x", **more: Any) -> Outcome:
        call = Call(name=self.tool.name, arguments={"query": query, **more})
        return await self.traffic.call({self.tool.name: self.tool}, call, CONTEXT)


def live(reply: Any, **config: Any) -> Asked:
    tool = Search(reply)
    tool.cacheable = False
    return Asked(tool, **config)
