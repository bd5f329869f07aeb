"""How far an evaluation is, as somebody sees it: a line that changes in a terminal, elsewhere a line at each quarter.

Knows counts, a clock and a screen.
"""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.status import Status

from arpo.display.bar import Quarters
from arpo.display.progress import duration


class EvalProgress:
    """Counts answers: `add` each. `before` were there already and are not part of the estimate."""

    def __init__(self, console: Console, total: int, *, before: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.total, self.done, self.new = console, total, before, 0
        self._right = 0.0
        self._failed = 0
        self._clock, self._started = clock, clock()
        self._quarters = Quarters()
        self._quarters.passed(before / total if total else 1.0)
        self._status: Status | None = None

    def __enter__(self) -> "EvalProgress":
        if self.console.is_terminal:
            self._status = self.console.status(self.text)
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def add(self, accuracy: float, *, failed: bool) -> None:
        self.done += 1
        self.new += 1
        self._right += accuracy
        self._failed += failed
        if self._status is not None:
            self._status.update(self.text)
        elif self._quarters.passed(self.done / self.total):
            self.console.print(self.text, highlight=False, markup=False)

    @property
    def text(self) -> str:
        """`asked 120 of 1,319, accuracy 41 %, 3 failed, about 4:10 left`: accuracy of what was asked now."""
        parts = [f"asked {self.done:,} of {self.total:,}"]
        if self.new:
            parts.append(f"accuracy {self._right / self.new:.0%}")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if self.new and self.done < self.total:
            parts.append(f"about {duration((self._clock() - self._started) / self.new * (self.total - self.done))} left")
        return ", ".join(parts)
