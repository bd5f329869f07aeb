"""One thread for one object of a user: it is created there, and its calls run there one after another.

Some objects belong to the thread that created them (a connection of sqlite3, a browser), and most are not thread-safe.
While a call hangs, further calls fail at once with "busy" instead of waiting for ever.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from arpo.errors import ProviderError
from arpo.threads import work_for

T = TypeVar("T")
Work = Callable[[], None]


class OwnThread:
    """The thread of one object, a daemon. `name` is for threads and messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._under_way: Future[object] | None = None
        threading.Thread(target=_serve, args=(self._queue,), name=f"arpo-{name}", daemon=True).start()
        weakref.finalize(self, self._queue.put, None)

    def make(self, function: Callable[[], T]) -> T:
        """Run `function()` in the thread, and block until it returns or raises."""
        future: Future[T] = Future()
        self._queue.put(work_for(future, function))
        return future.result()

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function()` in the thread. A cancelled call does not run, unless it has started.

        Raises ProviderError while a cancelled call still runs: later calls would miss their deadlines too.
        """
        await asyncio.sleep(0)  # lets a cancellation of just now take effect
        if self._under_way is not None and self._under_way.cancelled():
            raise ProviderError(f"{self.name} is still busy with a call that was stopped at its deadline")
        future: Future[T] = Future()
        work = work_for(future, function)

        def begin() -> None:
            if future.cancelled():
                return
            self._under_way = future  # type: ignore[assignment]
            try:
                work()
            finally:
                self._under_way = None

        self._queue.put(begin)
        return await asyncio.wrap_future(future)


def _serve(queue: "SimpleQueue[Work | None]") -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # it holds what it worked on: a thread that waits keeps nothing alive
