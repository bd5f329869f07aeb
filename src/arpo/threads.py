"""Foreign synchronous code, run where it can neither block the event loop nor keep the process alive.

A daemon thread a call: the loop's own executor is joined when the loop closes, so there one hanging call hangs the run.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """True for a coroutine function, and for an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


async def run_off_loop(function: Callable[..., T], *arguments: Any) -> T:
    """What `function(*arguments)` returns or raises. When cancelled, the thread is left to itself.

    SystemExit and KeyboardInterrupt raised by the function come back as RuntimeError: it has no say over the process.
    """
    future: Future[T] = Future()
    work = work_for(future, function, *arguments)
    threading.Thread(target=work, name=f"arpo-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await asyncio.wrap_future(future)


def work_for(future: "Future[T]", function: Callable[..., T], *arguments: Any) -> Callable[[], None]:
    """What a thread is to do so that `future` comes to what `function(*arguments)` returns or raises, in the caller's
    context."""
    context = copy_context()

    def work() -> None:
        try:
            result = context.run(function, *arguments)
        except StopIteration as error:  # no future can hold one, and who awaits would wait for ever
            _settle(future, error=RuntimeError(f"StopIteration: {error}"))
        except Exception as error:  # noqa: BLE001  handed to whoever awaits: this thread decides nothing
            _settle(future, error=error)
        except BaseException as error:  # noqa: BLE001
            _settle(future, error=RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            _settle(future, result=result)

    return work


async def settled(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` comes to, whether it is asynchronous, returns something to await, or neither (then it
    runs in a thread of its own)."""
    result = await (function(*arguments) if is_asynchronous(function) else run_off_loop(function, *arguments))
    return await result if inspect.isawaitable(result) else result


def _settle(future: "Future[Any]", *, result: Any = None, error: Exception | None = None) -> None:
    if not future.set_running_or_notify_cancel():  # nobody waits any more
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
