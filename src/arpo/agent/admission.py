"""Who may be answered now: so many at a time, so many who wait, and nobody new once the server ends.

Knows numbers and time. Refuses to know HTTP.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RefusedError(Exception):
    """A request that is not taken now. `retry_after_s`: when to try again."""

    def __init__(self, status: int, message: str, retry_after_s: int) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(message)


class Admission:
    """`running` requests are answered at a time, and at most `waiting` wait for their turn, in their order."""

    def __init__(self, running: int, waiting: int) -> None:
        self.most_running, self.most_waiting = running, waiting
        self.running = self.waiting = 0
        self.draining = False
        self._places = asyncio.Semaphore(running)
        self._mean_s = 1.0  # of an answer, the latest counting most

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place while the block runs. Raises RefusedError: 429 where too many wait, 503 where the server ends."""
        if self.draining:
            raise RefusedError(503, "the server ends: it takes no new request", self._retry_after_s())
        if self._places.locked() and self.waiting >= self.most_waiting:
            raise RefusedError(429, f"{self.running} requests run and {self.waiting} wait", self._retry_after_s())
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        began = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (asyncio.get_running_loop().time() - began - self._mean_s)
            self.running -= 1
            self._places.release()

    def _retry_after_s(self) -> int:
        """About when a place is free."""
        return max(1, math.ceil(self._mean_s * (self.waiting + 1) / self.most_running))
