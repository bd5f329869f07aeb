"""Tools of an MCP server, a program (stdio) or a service (streamable HTTP), through the official SDK (extra `mcp`).

Knows sessions and their results as text. A session lives on an event loop of its own, in a thread, so that it outlives
the loops of a run; it is opened again after the server went away. All branches share it, and so the state that a server
keeps per session.
"""

import asyncio
import json
import os
import shlex
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from string import Template
from typing import IO, Any

import httpx2
import mcp_types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ProviderError, ToolError, first_line, nearest
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult
from arpo.tools.recorded import server_of

GONE = (mcp_types.CONNECTION_CLOSED, mcp_types.REQUEST_TIMEOUT)
CLOSING_S = 5.0
MOST_PAGES = 100  # of a server's list of tools: some give the same page for ever
Opener = Callable[[AsyncExitStack], Coroutine[Any, Any, Client]]


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
    may be cached. Raises ConfigError where the server cannot be reached or lacks a tool.
    """
    if bool(command) == bool(url):
        raise ConfigError(
            "an MCP server is a `command` to start or a `url`", where="command" if command else "url", value=url or None
        )
    label = server_of(command, url)
    if url:
        opener, errors = _over_http(url, _expanded(headers, "headers"), connect_s), None
    else:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  lives as long as the server
        opener = _started(words, _expanded(env, "env"), folder, errors)
    server = Server(opener, label, connect_s, errors)
    try:
        offered = {tool.name: tool for tool in server.list_tools()}
    except ProviderError as error:
        raise ConfigError(str(error), where="command" if command else "url", value=label) from error
    for name in tools:
        if name not in offered:
            raise ConfigError("the server has no such tool", where="tools", value=name, hint=nearest(name, offered))
    if not offered:
        raise ConfigError("the server has no tools", where="command" if command else "url", value=label)
    return [McpTool(server, offered[name], keep) for name in tools or offered]


class McpTool(ToolBase):
    """One tool of a server. The model reads an error that the server reports; a server that is gone is a
    ProviderError."""

    def __init__(self, server: "Server", tool: Any, keep: bool) -> None:
        self._server, self._remote = server, tool.name
        self.name: str = tool.name
        self.description: str = " ".join((tool.description or tool.title or tool.name).split())
        self.schema: JsonSchema = tool.input_schema or {"type": "object", "properties": {}}
        self.provider, self.cacheable = server.label, keep
        self.offer = {"name": self.name, "description": self.description, "schema": self.schema}  # noted in a record

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        result = await self._server.call(self._remote, dict(arguments))
        text = as_text(result)
        return ToolResult(text=text, status=CallStatus.ERROR if result.is_error else CallStatus.OK, empty=not text)


class Server:
    """A session with a server, opened when it is first needed and again after it broke off. Safe to use from any loop
    or thread."""

    def __init__(self, opener: Opener, label: str, connect_s: float, errors: IO[str] | None = None) -> None:
        self.label, self._opener, self._connect_s, self._errors = label, opener, connect_s, errors
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=f"arpo-mcp-{label[:40]}", daemon=True)
        self._thread.start()
        self._session: asyncio.Future[Client] | None = None  # read and written on the loop alone
        self._stops: list[Callable[[], Any]] = []
        self.close = weakref.finalize(self, _close, self._loop, self._thread, self._stops)

    def list_tools(self) -> list[Any]:
        """The tools that the server offers, from all pages of its list."""
        return asyncio.run_coroutine_threadsafe(self._list(), self._loop).result()

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The server's CallToolResult. Raises ToolError for a call that it refuses, ProviderError where it is gone.

        It has no deadline of its own: who waits cancels it. Two would race, and a call that only takes long would now
        be told to the model and now be taken for an outage, for which the whole run pauses.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._call(name, arguments), self._loop))

    async def _list(self) -> list[Any]:
        client = await self._client()
        found: list[Any] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await self._within(client.list_tools(cursor=cursor), self._connect_s)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                return found
        raise ProviderError(
            f"the MCP server's list of tools has no end: {len(found):,} on {MOST_PAGES} pages", provider=self.label
        )

    async def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        client = await self._client()
        return await self._within(client.call_tool(name, arguments))

    async def _within(self, doing: Coroutine[Any, Any, Any], seconds: float | None = None) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await doing
        except MCPError as error:
            if error.code in GONE:
                self._session = None  # the next call opens it again
                raise ProviderError(f"the MCP server is gone: {self._told(error)}", provider=self.label) from None
            raise ToolError(f"the MCP server refuses: {error.message}") from None
        except TimeoutError:
            within = "in time" if seconds is None else f"within {seconds:g} s"
            raise ProviderError(f"the MCP server did not answer {within}", provider=self.label) from None
        except Exception as error:  # noqa: BLE001  a broken pipe or stream shows in many ways: none of them is the model's fault
            self._session = None
            raise ProviderError(f"the MCP server failed: {self._told(error)}", provider=self.label) from None

    async def _client(self) -> Client:
        if self._session is None:
            self._session = self._loop.create_future()
            stop = asyncio.Event()
            self._stops.append(partial(self._loop.call_soon_threadsafe, stop.set))
            task = self._loop.create_task(_serve(self._opener, self._session, stop))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        session = self._session
        try:
            async with asyncio.timeout(self._connect_s):
                return await asyncio.shield(session)
        except TimeoutError:
            self._session = None
            raise ProviderError(
                f"the MCP server did not answer within {self._connect_s:g} s", provider=self.label
            ) from None
        except Exception as error:  # noqa: BLE001  whatever a program or a service does when it is asked to start
            self._session = None
            raise ProviderError(f"the MCP server cannot be reached: {self._told(error)}", provider=self.label) from None

    def _told(self, error: BaseException) -> str:
        """The reason, from a group of exceptions its first; with the last line that the program wrote to stderr."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        said = ""
        if self._errors is not None:
            self._errors.seek(0)
            said = "".join(self._errors.readlines()[-1:]).strip()[:300]
        return f"{first_line(error)}{f' ({said})' if said else ''}"


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()  # its sockets


async def _serve(opener: Opener, session: "asyncio.Future[Client]", stop: asyncio.Event) -> None:
    """Keep a session open until it is to stop: it must be closed by the task that opened it."""
    try:
        async with AsyncExitStack() as stack:
            client = await opener(stack)
            if not session.done():
                session.set_result(client)
            await stop.wait()
    except BaseException as error:
        if not session.done():
            session.set_exception(error if isinstance(error, Exception) else RuntimeError(first_line(error)))
        raise


def _close(loop: asyncio.AbstractEventLoop, thread: threading.Thread, stops: list[Callable[[], Any]]) -> None:
    """End the sessions (a started server ends with its own), then the loop."""
    for stop in stops:
        stop()

    async def finish() -> None:
        others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=CLOSING_S)
        loop.stop()

    asyncio.run_coroutine_threadsafe(finish(), loop)
    thread.join(CLOSING_S + 1)


def _over_http(url: str, headers: Mapping[str, str], timeout_s: float) -> Opener:
    async def open_session(stack: AsyncExitStack) -> Client:
        timeout = httpx2.Timeout(
            timeout_s, read=300.0
        )  # a stream may be silent for long; calls have deadlines of their own
        client = await stack.enter_async_context(httpx2.AsyncClient(headers=dict(headers), timeout=timeout))
        return await stack.enter_async_context(Client(streamable_http_client(url, http_client=client)))

    return open_session


def _started(words: Sequence[str], env: Mapping[str, str], folder: str, errors: IO[str]) -> Opener:
    async def open_session(stack: AsyncExitStack) -> Client:
        command, *args = dies_with_parent(words, os.getpid())
        parameters = StdioServerParameters(command=command, args=args, env=dict(env), cwd=folder or None)
        return await stack.enter_async_context(Client(stdio_client(parameters, errlog=errors)))  # type: ignore[arg-type]

    return open_session


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


# --- a program that ends with this process, also where this one is killed

# Runs in the child before it becomes the program: 1 is PR_SET_PDEATHSIG, 9 SIGKILL. The parent may be gone by then.
_SCRIPT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def dies_with_parent(words: Sequence[str], parent: int) -> list[str]:
    """The command `words`, run so that Linux kills its process when the thread of the process `parent` that starts it
    has ended.

    On other systems: `words` as they are; a well-made server on stdio ends when its input does.
    """
    if sys.platform != "linux":
        return list(words)
    return [sys.executable, "-I", "-S", "-c", _SCRIPT, str(parent), *words]
