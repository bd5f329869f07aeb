"""An event loop in which waiting takes no time: the clock jumps to the next timer, so latencies of hours are exact and
free."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everybody waits for nobody: this would hang")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; nothing that it started may outlive it."""

    async def whole() -> T:
        try:
            return await work
        finally:
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, f"leaked: {left}"

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(whole())
