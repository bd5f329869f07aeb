"""A session with an MCP server: opened when it is first needed, and again after it broke off.

A session lives on an event loop of its own, in a thread, so that it outlives the loops of a run. Knows who is to blame
where a call breaks the session: the call, if a fresh session answers everything else.
"""

import asyncio
import atexit
import json
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import httpx2
import mcp_types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.session import IncomingMessage, MessageHandlerFnT
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import ValidationError

from arpo.errors import ProviderError, ToolError, first_line
from arpo.tools.mcp.process import MOST_BYTES, dies_with_parent

GONE = (mcp_types.CONNECTION_CLOSED, mcp_types.REQUEST_TIMEOUT)
BY_STATUS = ("Session terminated", "Server returned an error response")  # the SDK's words for HTTP 404, 401, 5xx
CLOSING_S = 5.0
MOST_PAGES = 100  # of a server's list of tools: some give the same page for ever
MOST_BROKEN = 20  # different calls in a row that break the session, none answered between them: then it is the server
STDERR_BYTES = 4_096  # of what a program wrote to stderr: its last line explains an error
MESSAGE = ('"jsonrpc"', '"result"', '"error"')  # a line with one of them is a broken message, and no banner
Opener = Callable[[AsyncExitStack, MessageHandlerFnT], Coroutine[Any, Any, Client]]


class CallBrokeServerError(Exception):
    """A call after which the server was gone or answered with what is no message, twice, and that answers others. It
    is an error of the call, and counts in the tool's error rate."""


class _BrokenError(Exception):
    """The session broke off during a call."""


@dataclass(eq=False, slots=True)
class _Session:
    """One connection. All of it is read and written on the server's loop alone."""

    client: asyncio.Future[Client]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    calls: set[asyncio.Future[Any]] = field(default_factory=set)  # under way
    listed: dict[str, Any] = field(default_factory=dict)  # the last list of tools, as the server wrote it
    task: asyncio.Task[None] | None = None

    async def hear(self, message: IncomingMessage) -> None:
        """Ends the calls under way when the server sends a broken message: their answer may have been in it."""
        if isinstance(message, ValidationError):
            text = str(message.errors(include_url=False)[0].get("input"))
            if any(part in text or part.replace('"', "'") in text for part in MESSAGE):
                for call in list(self.calls):
                    call.cancel()


class Server:
    """Safe to use from any loop or thread. `errors`: what a started program writes to stderr; None for a service."""

    def __init__(self, opener: Opener, label: str, connect_s: float, errors: IO[str] | None = None) -> None:
        # it prints a traceback for a banner on stdout; what goes wrong is told by our errors
        logging.getLogger("mcp").setLevel(logging.CRITICAL)
        logging.getLogger("client").setLevel(logging.CRITICAL)
        self.label, self._opener, self._connect_s, self._errors = label, opener, connect_s, errors
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=f"arpo-mcp-{label[:40]}", daemon=True)
        self._thread.start()
        # all of these are read and written on the loop alone
        self._session: _Session | None = None
        self._alone = asyncio.Lock()  # held by a call that is made again to see whether it is to blame
        self._culprits: set[str] = set()
        self._broken: set[str] = set()  # since a call was last answered
        self._stops: list[Callable[[], Any]] = []
        ending = _Ending(self._loop, self._thread, self._stops)
        _OPEN.add(ending)
        self.close = weakref.finalize(self, ending.finish)
        self.close.atexit = False  # at the interpreter's end all end at once: _close_all

    def list_tools(self) -> tuple[list[Any], dict[str, str]]:
        """The tools that the server offers, from all pages of its list, and what is wrong with malformed ones, by
        name. Raises ProviderError."""
        return asyncio.run_coroutine_threadsafe(self._list(), self._loop).result()

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The server's CallToolResult. Raises ToolError for a call that it refuses, CallBrokeServerError for one that
        breaks it, ProviderError where it fails whatever it is asked.

        It has no deadline of its own: who waits cancels it. Two would race, and a call that only takes long would now
        be told to the model and now be taken for an outage, for which the whole run pauses.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._call(name, arguments), self._loop))

    async def _list(self) -> tuple[list[Any], dict[str, str]]:
        session = await self._open()
        tools: list[Any] = []
        malformed: dict[str, str] = {}
        passed: list[str] = []  # cursors
        try:
            async with asyncio.timeout(self._connect_s):
                while len(passed) < MOST_PAGES:
                    read, wrong, cursor = await _page(session, passed[-1] if passed else None)
                    tools, malformed = tools + read, malformed | wrong
                    if not cursor:
                        return tools, malformed
                    passed.append(cursor)
                    if cursor in passed[:-1]:
                        break
        except TimeoutError:
            self._drop(session)
            raise self._error(f"did not answer within {self._connect_s:g} s") from None
        except Exception as error:  # noqa: BLE001  whatever a program or a service answers
            self._drop(session)
            raise self._error(f"does not list its tools: {self._told(error)}") from None
        why = f"the cursor {passed[-1]!r:.80} comes again" if passed[-1] in passed[:-1] else f"{MOST_PAGES} pages"
        raise self._error(f"has a list of tools without an end: {len(tools):,}, {why}")

    def _error(self, what: str) -> ProviderError:
        return ProviderError(f"the MCP server {what}", provider=self.label)

    async def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        call = json.dumps([name, arguments], sort_keys=True, default=repr)
        if call in self._culprits:
            raise CallBrokeServerError("these arguments broke the MCP server before, so they are not sent again")
        async with self._alone:  # a call that may be to blame is made while no other is
            pass
        try:
            return await self._once(name, arguments)
        except _BrokenError:
            pass
        async with self._alone:
            try:
                return await self._once(name, arguments)
            except _BrokenError as error:
                await self._list()  # raises where the server is not there for others either
                self._broken.add(call)
                if len(self._broken) >= MOST_BROKEN:
                    raise self._error(f"fails, whatever it is asked: {error}") from None
                self._culprits.add(call)
                raise CallBrokeServerError(f"the call broke the MCP server: {error}") from None

    async def _once(self, name: str, arguments: dict[str, Any]) -> Any:
        """The answer to one call. Raises ToolError for a refusal, and _BrokenError."""
        session = await self._open()
        call = asyncio.ensure_future(session.client.result().call_tool(name, arguments))
        session.calls.add(call)
        try:
            result = await call
        except MCPError as error:
            if error.code in GONE or error.message in BY_STATUS:
                self._drop(session)
                raise _BrokenError(self._told(error)) from None
            raise ToolError(f"the MCP server refuses: {error.message}") from None
        except (ValidationError, RuntimeError) as error:  # what the SDK raises for an answer of the wrong form
            raise ToolError(f"the MCP server's answer is malformed: {_reason(error)}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # by who waits for the call
                raise
            self._drop(session)
            raise _BrokenError("it answered with what is no message") from None
        except Exception as error:  # noqa: BLE001  a broken pipe or stream shows in many ways
            self._drop(session)
            raise _BrokenError(self._told(error)) from None
        finally:
            call.cancel()
            session.calls.discard(call)
        self._broken.clear()
        return result

    def _drop(self, session: _Session) -> None:
        """End the session: the next call opens another."""
        session.stop.set()
        if session.task is not None and not session.client.done():
            session.task.cancel()
        if self._session is session:
            self._session = None

    async def _open(self) -> _Session:
        """The session, with a client that is there."""
        session = self._session
        if session is None:
            session = self._session = _Session(self._loop.create_future())
            self._stops[:] = [partial(self._loop.call_soon_threadsafe, session.stop.set)]
            session.task = self._loop.create_task(_serve(self._opener, session))
            session.task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._connect_s):
                await asyncio.shield(session.client)
            return session
        except TimeoutError:
            self._drop(session)
            raise self._error(f"did not answer within {self._connect_s:g} s") from None
        except Exception as error:  # noqa: BLE001  whatever a program or a service does when it is asked to start
            self._drop(session)
            raise self._error(f"cannot be reached: {self._told(error)}") from None

    def _told(self, error: BaseException) -> str:
        """The reason, from a group of exceptions its first; with the last line that the program wrote to stderr."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        last = ""
        if self._errors is not None:
            end = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, end - STDERR_BYTES))
            last = "".join(self._errors.read().splitlines()[-1:]).strip()[:300]
        return f"{_reason(error)}{f' ({last})' if last else ''}"


def _reason(error: BaseException) -> str:
    """The error in one line; where an answer does not have the form of the protocol, its first wrong field."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    return _field(error.errors(include_url=False)[0])


def _field(wrong: Mapping[str, Any], skip: int = 0) -> str:
    """A field that pydantic found wrong, without the first `skip` parts of its place."""
    place = ".".join(map(str, wrong["loc"][skip:]))
    value = "" if wrong["type"] == "missing" else f", not {wrong['input']!r:.100}"
    return f"{place or 'it'}: {wrong['msg']}{value}"


async def _page(session: _Session, cursor: str | None) -> tuple[list[Any], dict[str, str], str | None]:
    """The tools on a page of the list, what is wrong with others on it, by name, and the next page's cursor."""
    try:
        page = await session.client.result().list_tools(cursor=cursor, cache_mode="bypass")
    except ValidationError as error:
        malformed: dict[int, str] = {}
        for wrong in error.errors(include_url=False):
            if wrong["loc"][:1] != ("tools",) or len(wrong["loc"]) < 2:
                raise
            malformed.setdefault(int(wrong["loc"][1]), _field(wrong, skip=2))
        entries = dict(enumerate(session.listed["tools"]))
        names = {
            at: str(entries[at].get("name", ""))[:100] if isinstance(entries[at], dict) else "" for at in malformed
        }
        told = {names[at] or f"number {at + 1} of its list": why for at, why in malformed.items()}
        tools = [mcp_types.Tool.model_validate(entries[at], by_name=False) for at in entries if at not in malformed]
        return tools, told, session.listed.get("nextCursor")
    return page.tools, {}, page.next_cursor


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()  # its sockets


async def _unchecked(name: str, result: Any) -> None:
    """In place of the SDK's check of a result against the server's own schema, which can take for ever (`pattern`,
    nested `anyOf`), here in our process. The model reads the text, whatever the schema says."""


def _keep_lists(client: Client, session: _Session) -> None:
    """Keep lists of tools as they came: an error of the SDK does not tell the name of the tool that it is about."""
    dispatcher: Any = client.session._dispatcher
    send = dispatcher.send_raw_request

    async def kept(method: str, *more: Any) -> dict[str, Any]:
        result: dict[str, Any] = await send(method, *more)
        if method == "tools/list":
            session.listed = result
        return result

    dispatcher.send_raw_request = kept


async def _serve(opener: Opener, session: _Session) -> None:
    """Keep a session open until it is to stop: it must be closed by the task that opened it."""
    try:
        async with AsyncExitStack() as stack:
            client = await opener(stack, session.hear)
            client.session.validate_tool_result = _unchecked  # type: ignore[method-assign]
            _keep_lists(client, session)
            if not session.client.done():
                session.client.set_result(client)
            await session.stop.wait()
    except BaseException as error:
        if not session.client.done():
            session.client.set_exception(error if isinstance(error, Exception) else RuntimeError(first_line(error)))
        raise


@dataclass(eq=False, slots=True)
class _Ending:
    """The end of a Server, which does not hold it."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    stops: list[Callable[[], Any]]
    begun: bool = False

    def begin(self) -> None:
        """Ask the sessions to end (a started server ends with its own), and then the loop. Waits for nothing."""
        if self.begun:
            return
        self.begun = True
        for stop in self.stops:
            stop()
        asyncio.run_coroutine_threadsafe(self._stop_loop(), self.loop)

    async def _stop_loop(self) -> None:
        others = [task for task in asyncio.all_tasks(self.loop) if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=CLOSING_S)
        self.loop.stop()

    def finish(self) -> None:
        """Wait until all of it has ended, for some seconds at most."""
        self.begin()
        self.thread.join(CLOSING_S + 1)
        _OPEN.discard(self)


_OPEN: set[_Ending] = set()


@atexit.register
def _close_all() -> None:
    """A server may take seconds to end, so none waits until another has ended."""
    endings = list(_OPEN)
    for ending in endings:
        ending.begin()
    for ending in endings:
        ending.finish()


@dataclass(frozen=True, slots=True)
class _Bounded(httpx2.AsyncByteStream):
    """An answer's body, of MOST_BYTES at most and not packed (which was not asked for, and may be a bomb)."""

    body: httpx2.AsyncByteStream
    packed: bool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for piece in self.body:
            read += len(piece)
            if read > MOST_BYTES or self.packed:
                raise httpx2.StreamError("it is packed" if self.packed else f"more than {MOST_BYTES >> 20} MiB")
            yield piece

    async def aclose(self) -> None:
        await self.body.aclose()


async def _bound(answer: httpx2.Response) -> None:
    """Bound an answer that the SDK reads whole. (It bounds each event of a stream.)"""
    if not answer.headers.get("content-type", "").lower().startswith("text/event-stream"):
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        answer.stream = _Bounded(answer.stream, answer.headers.get("content-encoding", "identity") != "identity")


def over_http(url: str, headers: Mapping[str, str], timeout_s: float) -> Opener:
    async def open_session(stack: AsyncExitStack, hear: MessageHandlerFnT) -> Client:
        timeout = httpx2.Timeout(
            timeout_s, read=300.0
        )  # a stream may be silent for long; calls have deadlines of their own
        sent = {"Accept-Encoding": "identity", **headers}
        client = await stack.enter_async_context(
            httpx2.AsyncClient(headers=sent, timeout=timeout, event_hooks={"response": [_bound]})
        )
        return await stack.enter_async_context(
            Client(streamable_http_client(url, http_client=client), message_handler=hear)
        )

    return open_session


def started(words: Sequence[str], env: Mapping[str, str], folder: str, errors: IO[str]) -> Opener:
    async def open_session(stack: AsyncExitStack, hear: MessageHandlerFnT) -> Client:
        command, *args = dies_with_parent(words, os.getpid())
        parameters = StdioServerParameters(command=command, args=args, env=dict(env), cwd=folder or None)
        return await stack.enter_async_context(Client(stdio_client(parameters, errlog=errors), message_handler=hear))  # type: ignore[arg-type]

    return open_session
