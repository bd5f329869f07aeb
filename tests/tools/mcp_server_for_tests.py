"""An MCP server that the tests start as a process: `python mcp_server_for_tests.py` speaks stdio, with a port
streamable HTTP."""

import asyncio
import os
import sys

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests")


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Adds two numbers.

    The second is 1 where it is left out."""
    return str(a + b)


@server.tool()
def fail(text: str) -> str:
    """Fails."""
    raise ToolError(f"no good: {text}")


@server.tool()
def environment(name: str) -> str:
    """A variable of the server's environment."""
    return os.environ.get(name, "(none)")


@server.tool()
def table() -> dict[str, int]:
    """A value that is no text."""
    return {"rows": 3}


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG", format="png")


@server.tool()
def nothing() -> None:
    """Nothing."""


@server.tool()
async def slow(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "done"


@server.tool()
def die() -> str:
    """Ends the process."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
