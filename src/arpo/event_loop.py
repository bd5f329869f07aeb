"""Runs a coroutine to completion from synchronous code, with or without a running event loop; a group of tasks that
fails with a plain error; what a task tells, as a stream; and a wait that is not broken off.

Knows `asyncio.run` and threads. Refuses to know what the coroutine does.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, TypeVar

E = TypeVar("E")
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


async def told(work: Callable[[Callable[[E], None]], Coroutine[Any, Any, T]]) -> AsyncGenerator[E | T, None]:
    """What `work` tells through the function that it is called with, as it tells it, and at last what it returns.
    Raises what it raises. Closing the generator cancels it."""
    said: asyncio.Queue[E | None] = asyncio.Queue()
    task = asyncio.create_task(work(said.put_nowait))
    task.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (event := await said.get()) is not None:
            yield event
        yield await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def finished(work: asyncio.Future[T]) -> T:
    """The result of `work`. Where this is cancelled, the work is finished first, and the cancellation raised at the
    next await."""
    interrupted = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            interrupted = True
    task = asyncio.current_task()
    if interrupted and task is not None:
        task.uncancel()
        task.cancel()
    return work.result()


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine like `asyncio.run`, also where a loop already runs, as in a notebook's cell. Returns its result.

    In that case the coroutine gets a thread with its own loop, and the caller's loop blocks until it ends, as it does
    in any synchronous function. Ctrl-C cancels the coroutine and raises KeyboardInterrupt once it has ended.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    return _run_in_thread(coroutine)


def _run_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
    done: Future[T] = Future()

    async def tracked() -> T:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await coroutine

    def run() -> None:
        try:
            result = asyncio.run(tracked())
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            done.set_exception(error)
        else:
            done.set_result(result)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="arpo")
    thread.start()
    try:
        return done.result()
    except KeyboardInterrupt:
        if not done.done():
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
        raise
