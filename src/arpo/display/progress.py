"""Progress of long work, on rich: a live line or bar in a terminal; elsewhere a plain line at each step, or at each
quarter.

`Progress` is for training, `EvalProgress` for evaluations, `WorkProgress` for downloads, conversions and indexing.
Knows counts, phases and the clock. Refuses to know what the work is; it reads no files, and no result depends on it.

    with Progress(12, minutes=15) as progress:
        for step in range(12):
            progress.phase("sampling", total=64)
            ...; progress.advance()
            progress.step(metrics | progress.timings())
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from arpo.display.terminal import Console

_RECENT = 3  # steps whose mean duration predicts the next ones


class Progress:
    """Counts steps and times phases; `done` steps of a resumed run are behind us. `minutes` is the run's budget, if it
    has one."""

    def __init__(
        self,
        total_steps: int,
        *,
        minutes: float | None = None,
        done: int = 0,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps, self.minutes, self.done, self.title = total_steps, minutes, done, title
        self.console = console or Console(soft_wrap=True)
        self._clock = clock
        self._started = self._step_started = self._phase_started = clock()
        self._phase, self._phase_done, self._phase_total = "", 0.0, 0.0
        self._seconds: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._rates: deque[float] = deque(maxlen=_RECENT)
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- what the loop tells

    def phase(self, name: str, *, total: float = 0) -> None:
        """Enter a phase of the step ("sampling", "update", ...), ending the one before. `total`: how often `advance`
        will count."""
        now = self._clock()
        self._end_phase(now)
        self._phase, self._phase_started, self._phase_done, self._phase_total = name, now, 0.0, total

    def advance(self, count: float = 1) -> None:
        self._phase_done += count

    def timings(self) -> dict[str, float]:
        """`seconds/PHASE` of this step so far, and `seconds/step`."""
        now = self._clock()
        self._end_phase(now)
        self._phase_started = now
        return {**{f"seconds/{name}": s for name, s in self._seconds.items()}, "seconds/step": now - self._step_started}

    def step(self, metrics: Mapping[str, object]) -> None:
        """A step is done."""
        now = self._clock()
        self._end_phase(now)
        self._recent.append(now - self._step_started)
        self.done += 1
        if (rate := tokens_per_s(metrics)) > 0:
            self._rates.append(rate)
        self._phase, self._seconds, self._step_started = "", {}, now
        self.say(f"step {self.done}/{self.total_steps}  {summary_line(metrics)}  {self._remaining_text()}".rstrip())

    def say(self, text: str) -> None:
        """Print a line above the display (a warning, a note)."""
        self.console.print(Text(text), highlight=False)

    # --- what the loop may ask

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def step_s(self) -> float:
        """Mean seconds of the last steps; NaN before the first is done."""
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    @property
    def budget_left_s(self) -> float:
        """Seconds of `minutes` that are left; infinity without a budget."""
        return math.inf if self.minutes is None else 60 * self.minutes - self.elapsed_s

    def room_for_step(self, *, reserve_s: float = 0.0, tokens: float = 0.0) -> bool:
        """True while the budget has room for one more step of the usual length, and after it for `reserve_s` seconds
        and for sampling `tokens` at the speed of the last steps. The first step always fits unless the budget is
        already spent."""
        needed = (1.15 * self.step_s if self._recent else 0.0) + reserve_s  # steps vary by some 10 to 15 %
        if self._rates:
            needed += tokens * len(self._rates) / sum(self._rates)
        return self.budget_left_s > needed

    @property
    def remaining_s(self) -> float:
        """Expected seconds until the last step, no more than the budget; NaN while unknown."""
        expected = self.step_s * (self.total_steps - self.done)
        return min(expected, max(self.budget_left_s, 0.0)) if self._recent else math.nan

    # --- inside

    def _end_phase(self, now: float) -> None:
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._phase_started

    def _remaining_text(self) -> str:
        if self.done >= self.total_steps or math.isnan(self.remaining_s):
            return ""
        return f"{duration(self.remaining_s)} left"

    def _render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self.total_steps, 1), completed=self.done, width=30)
        left = self._remaining_text() or "estimating" if self.done < self.total_steps else "done"
        grid.add_row(
            self.title or "training", bar, f"step {min(self.done + 1, self.total_steps)}/{self.total_steps}", left
        )
        parts: list[RenderableType] = [grid]
        if self._phase:
            counted = f" {self._phase_done:g}/{self._phase_total:g}" if self._phase_total else ""
            self._spinner.update(text=Text(f"{self._phase}{counted}  {duration(self._clock() - self._phase_started)}"))
            parts.append(self._spinner)
        return Group(*parts)


_SHOWN = (  # label, metric, format
    ("loss", "loss", "{:.3f}"),  # of a cold start
    ("reward", "reward/leaves", "{:.3f}"),
    ("accuracy", "accuracy/probe_lines", "{:.0%}"),
    ("tool calls", "calls/answered", "{:.0f}"),
    ("tokens", "tokens/generated", "{:,.0f}"),
    ("tokens/s", "tokens/per_s", "{:,.0f}"),
    ("seconds", "seconds/step", "{:.0f}"),
)


def tokens_per_s(metrics: Mapping[str, object]) -> float:
    """Tokens that a step generated a second of sampling, where it does not state them; NaN where it says neither."""
    stated, tokens, seconds = (metrics.get(key) for key in ("tokens/per_s", "tokens/generated", "seconds/sampling"))
    if isinstance(stated, int | float):
        return stated
    if isinstance(tokens, int | float) and isinstance(seconds, int | float) and seconds > 0:
        return tokens / seconds
    return math.nan


def summary_line(metrics: Mapping[str, object]) -> str:
    """`reward 0.412  accuracy 53%  tool calls 120 ...`: what of a step fits one line; what it lacks is left out."""
    metrics = {**metrics, "tokens/per_s": tokens_per_s(metrics)}
    shown = [(label, value, form) for label, key, form in _SHOWN if isinstance(value := metrics.get(key), int | float)]
    return "  ".join(f"{label} {form.format(value)}" for label, value, form in shown if math.isfinite(value))


def duration(seconds: float) -> str:
    """`1:02:03`, `4:05`, `12 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class Quarters:
    """When another plain line is worth printing."""

    def __init__(self) -> None:
        self._reached = 0

    def passed(self, share: float) -> bool:
        """True where `share` (0 to 1) has come past another quarter since the last call."""
        reached, before = int(4 * share + 1e-9), self._reached
        self._reached = max(reached, before)
        return reached > before


class _Line:
    """A live bar with a text in a terminal, which starts at the first update; elsewhere a plain line at each
    quarter."""

    def __init__(self, console: Console, *, share: float = 0.0) -> None:
        self.console, self._quarters = console, Quarters()
        self._quarters.passed(share)
        self._live: RichProgress | None = None

    def update(self, share: float, *, live: str, plain: str) -> None:
        if not self.console.is_terminal:
            if self._quarters.passed(share):
                self.say(plain)
            return
        if self._live is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TaskProgressColumn())
            self._live = RichProgress(*columns, console=self.console, transient=True)
            self._live.add_task(live, total=1.0)
            self._live.start()
        self._live.update(self._live.task_ids[0], completed=share, description=live)

    def say(self, text: str) -> None:
        self.console.print(text)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class EvalProgress:
    """Counts samples: `add` for each. `before` of `total` were there already and are not part of the estimate."""

    def __init__(
        self,
        console: Console,
        total: int,
        *,
        title: str = "",
        before: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.title, self.done, self.new = total, title, before, 0
        self._right = 0.0
        self._failed = 0
        self._clock, self._started = clock, clock()
        self._line = _Line(console, share=before / total if total else 1.0)

    def __enter__(self) -> "EvalProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.stop()

    def add(self, accuracy: float, *, failed: bool) -> None:
        self.done += 1
        self.new += 1
        self._right += accuracy
        self._failed += failed
        self._line.update(self.done / self.total, live=self.text, plain=self.text)

    @property
    def text(self) -> str:
        """`evaluating gsm8k: 120 of 1,319, accuracy 41%, 3 failed, about 4:10 left`: accuracy of the new samples."""
        parts = [f"{f'evaluating {self.title}'.rstrip()}: {self.done:,} of {self.total:,}"]
        if self.new:
            parts.append(f"accuracy {self._right / self.new:.0%}")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if self.new and self.done < self.total:
            parts.append(
                f"about {duration((self._clock() - self._started) / self.new * (self.total - self.done))} left"
            )
        return ", ".join(parts)


class WorkProgress:
    """Called with the name of the work and the share of it that is done (0 to 1). Work first heard of at 1 is only
    named.

    What stands in brackets after the name (`reading documents (5,000)`) may change; it shows in a terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._work = ""
        self._line = _Line(self.console)

    def __enter__(self) -> "WorkProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.stop()

    def __call__(self, work: str, share: float) -> None:
        name, _, detail = work.partition(" (")
        if name == self._work:
            self._line.update(share, live=f"({detail}" if detail else " ", plain=f"{name}: {share:.0%}")
            return
        self._line.stop()
        self._work, self._line = name, _Line(self.console)
        self._line.say(work if share >= 1 else f"{name} ...")
