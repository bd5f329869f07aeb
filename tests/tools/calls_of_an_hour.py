"""A program that makes calls which would take an hour, all at once: `python calls_of_an_hour.py URL FILE`.

`URL` never answers, and the MCP server writes its number into `FILE` when it has got its call. For each call that is
given up the program prints a name.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from arpo.environments.shell import ShellEnvironment
from arpo.sandbox import levels
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import attempt
from arpo.tools.config import ToolConfig, build_tools
from arpo.tools.function import tool

HOUR = 3600.0
TASK = Task(id="t", messages=({"role": "user", "content": "q"},), answers=())
CONTEXT = CallContext(task=TASK, deadline_s=HOUR, seed=0)
SERVER = [sys.executable, "-S", str(Path(__file__).parent / "odd_mcp_server.py"), "sleeps"]


@tool
def nap() -> str:
    """Sleeps."""
    time.sleep(HOUR)
    return "slept"


def called(use: str, arguments: dict[str, Any], **options: Any) -> Awaitable[Any]:
    (built,) = build_tools([ToolConfig(use=use, options=options)])
    return attempt(built, arguments, CONTEXT)


async def all_of_them(url: str, file: str) -> None:
    calls: dict[str, Awaitable[Any]] = {
        "page": called("page", {"url": url}, timeout_s=HOUR, robots=False, allow_private=["127.0.0.0/8"]),
        "mcp": called("mcp", {"how": "x"}, command=[*SERVER, file], tools=["odd"]),
        "function": attempt(nap, {}, CONTEXT),
    }
    if sys.platform == "linux" and any(found.works for found in levels.probe()):
        folder = ShellEnvironment(seconds=HOUR)
        folder.reset(TASK)
        calls["shell"] = folder.shell("sleep 3600", CONTEXT)

    async def told(name: str, call: Awaitable[Any]) -> None:
        try:
            print(name, "ended:", await call, flush=True)
        except asyncio.CancelledError:
            print(name, flush=True)
            raise

    await asyncio.gather(*(told(name, call) for name, call in calls.items()))


if __name__ == "__main__":
    try:
        asyncio.run(all_of_them(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
