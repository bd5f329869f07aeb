"""Runs foreign synchronous code where it can neither block the event loop nor keep the process alive.

Every call gets a daemon thread. The loop's executor would not do: the loop joins it when it closes, so that one hanging
call hangs the run.
"""

import asyncio
import inspect
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class WorkClock:
    """When foreign code ran in threads of its own, by the threads' own account, and its processor time."""

    began: float = math.inf
    ended: float = -math.inf
    cpu_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self.began, self.ended = min(self.began, began), max(self.ended, time.monotonic())
            self.cpu_s += time.thread_time() - cpu


work_clock: ContextVar[WorkClock] = ContextVar("work_clock")  # of the call that is being made


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """True for a coroutine function, and for an object whose `__call__` is a coroutine function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def run_off_loop(function: Callable[..., T], *arguments: Any) -> T:
    """Call `function(*arguments)` in a thread. Returns its result or raises its error. A cancelled call leaves the
    thread running.

    A SystemExit or KeyboardInterrupt from the function becomes a RuntimeError: foreign code may not end the process.
    """
    future: Future[T] = Future()
    work = work_for(future, function, *arguments)
    threading.Thread(target=work, name=f"arpo-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await asyncio.wrap_future(future)


def work_for(future: "Future[T]", function: Callable[..., T], *arguments: Any) -> Callable[[], None]:
    """A thread's target that calls `function(*arguments)` in the caller's context and settles `future` with the result
    or the error."""
    context = copy_context()

    def work() -> None:
        try:
            with (context.get(work_clock) or WorkClock()).running():
                result = context.run(function, *arguments)
        except StopIteration as error:  # a future cannot hold one, and its awaiter would wait for ever
            _settle(future, error=RuntimeError(f"StopIteration: {error}"))
        except Exception as error:  # noqa: BLE001  the awaiter raises it
            _settle(future, error=error)
        except BaseException as error:  # noqa: BLE001
            _settle(future, error=RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            _settle(future, result=result)

    return work


async def settled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(*arguments)` and await its result, whether the function is asynchronous, returns an awaitable, or
    is synchronous (then it runs in its own thread)."""
    result = await (function(*arguments) if is_asynchronous(function) else run_off_loop(function, *arguments))
    return await result if inspect.isawaitable(result) else result


def _settle(future: "Future[Any]", *, result: Any = None, error: Exception | None = None) -> None:
    if not future.set_running_or_notify_cancel():  # the awaiter was cancelled
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
