"""Asynchronous work: run to its end by a function that is not asynchronous, and in a group that fails with plain
errors.

Knows `asyncio` and threads. Refuses to know what the work is.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the first failure as it is, not wrapped in a group.

    Where a task fails, the others are cancelled and awaited. What they raise meanwhile is dropped: it follows from the
    first."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises: `asyncio.run`, also where a loop runs already, as in a notebook's cell.

    There the work gets a thread with a loop of its own, and the caller's loop stands still until it ends, as it does
    under any function that is not asynchronous. Ctrl-C cancels the work, and raises KeyboardInterrupt when that has
    come to its end.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _elsewhere(work)


def _elsewhere(work: Coroutine[Any, Any, T]) -> T:
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
    done: Future[T] = Future()

    async def tracked() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        return await work

    def run() -> None:
        try:
            result = asyncio.run(tracked())
        except BaseException as error:  # noqa: BLE001  handed to the caller: this thread decides nothing
            done.set_exception(error)
        else:
            done.set_result(result)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="arpo")
    thread.start()
    try:
        return done.result()
    except KeyboardInterrupt:
        if not done.done():
            loop, task = begun.result()
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
        raise
