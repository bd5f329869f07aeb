"""An event loop for one tool: an asynchronous function that blocks it delays no other tool.

The loop stays from call to call, so that an HTTP client, say, stays on the loop that created it. A call that does not
start within PATIENCE_S, because an earlier one blocks the loop, gets a new loop; the blocked loop ends with its calls.
"""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from arpo.errors import ToolError
from arpo.threads import WorkClock, work_clock

T = TypeVar("T")
PATIENCE_S = 1.0  # within which a call must start
MOST_BLOCKED = 64  # blocked loops, before the tool counts as broken


class ToolEventLoop:
    """The loop of one tool, in a daemon thread. `name` is for threads and messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._blocked: list[threading.Thread] = []
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await `function()` on the tool's loop; cancellation cancels it there."""
        while True:
            loop = self._running()
            begun: Future[None] = Future()
            running = asyncio.run_coroutine_threadsafe(_begin(function, begun), loop)
            try:
                await asyncio.wait_for(asyncio.wrap_future(begun), PATIENCE_S)
            except TimeoutError:
                if begun.cancelled():  # else it started at the last moment
                    self._leave(loop)
                    continue
            except BaseException:
                running.cancel()
                raise
            return await asyncio.wrap_future(running)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._blocked = [thread for thread in self._blocked if thread.is_alive()]
            if len(self._blocked) >= MOST_BLOCKED:
                raise ToolError(f"{len(self._blocked)} earlier calls of {self.name} block and never came back")
            self._loop = loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(loop,), name=f"arpo-{self.name}", daemon=True)
            self._thread.start()
            weakref.finalize(self, _retire, loop)
        return self._loop

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            assert self._thread is not None
            self._blocked.append(self._thread)
            self._loop = None
            _retire(loop)


async def _begin(function: Callable[[], Awaitable[T]], begun: "Future[None]") -> T:
    if not begun.set_running_or_notify_cancel():  # it runs on another loop
        raise asyncio.CancelledError
    begun.set_result(None)
    try:
        with work_clock.get(WorkClock()).running():
            return await function()
    except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop under its other calls
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _retire(loop: asyncio.AbstractEventLoop) -> None:
    """End the loop as soon as its calls have ended."""

    async def end() -> None:
        others: set[asyncio.Task[Any]] = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        if others:
            await asyncio.wait(others)
        loop.stop()

    if not loop.is_closed():
        ending: list[asyncio.Task[None]] = []  # the loop alone would not keep it
        loop.call_soon_threadsafe(lambda: ending.append(loop.create_task(end())))
