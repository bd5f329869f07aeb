"""Long pieces of work outside of training as somebody sees them: a bar in a terminal, elsewhere a line at each quarter.

Knows a name and a share. Refuses to know what is being done.
"""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Display


class Quarters:
    """When another line is worth printing."""

    def __init__(self) -> None:
        self._told = 0

    def passed(self, done: float) -> bool:
        """True where `done` (0 to 1) has come past another quarter since this was last asked."""
        reached, before = int(4 * done + 1e-9), self._told
        self._told = max(reached, before)
        return reached > before


class Bar:
    """Called with what is being done and how much of it is done (0 to 1). What is first heard of when it is done is only told."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._what = ""
        self._quarters = Quarters()
        self._display: Display | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def __call__(self, what: str, done: float) -> None:
        if what != self._what:
            self._stop()
            self._what, self._quarters = what, Quarters()
            self._say(what if done >= 1 else f"{what} ...")
        elif self.console.is_terminal:
            self._draw(done)
        elif self._quarters.passed(done):
            self._say(f"{what}: {done:.0%}")

    def _draw(self, done: float) -> None:
        if self._display is None:  # not before something is known: what is fetched may have a display of its own
            columns = (TextColumn("  "), BarColumn(), TaskProgressColumn())
            self._display = Display(*columns, console=self.console, transient=True)
            self._task = self._display.add_task("", total=1.0)
            self._display.start()
        self._display.update(self._task, completed=done)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def _stop(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None
