"""What a study's rows say: calls to reach an accuracy, area under accuracy over calls, accuracy at equal calls, and on
held-out tasks; each over seeds, and against the baseline on the same seeds.

Knows rows. Refuses to know folders and processes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from arpo.display.charts import Line, Panel, draw
from arpo.display.tables import ShownTable
from arpo.evaluation.comparison import ComparedRun
from arpo.evaluation.statistics import Estimate, holm, over_seeds, sign_flip_test
from arpo.study.plan import Row, Study

CALLS, ACCURACY = "calls/executed", "accuracy/probe_lines"
POINTS = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """A cell less the baseline, over the seeds of both: mean with Student's t interval, and the p-value of a sign-flip
    test, corrected for all comparisons of the study (Holm)."""

    mean: Estimate
    p_value: float

    def __str__(self) -> str:
        return "-" if not self.mean.n else f"{self.mean} p {self.p_value:.2g}"


class Figures:
    """The figures of a study's rows. `calls` is the number of calls that every run made: what is equal about equal
    calls."""

    def __init__(self, study: Study, rows: Sequence[Row]) -> None:
        self.study = study
        self.runs: dict[str, dict[int, ComparedRun]] = {name: {} for name in study.variants}
        self.after: dict[str, dict[int, float]] = {name: {} for name in study.variants}
        for row in rows:
            steps = zip(*row.history.values(), strict=True)
            lines = [dict(zip(row.history, step, strict=True)) for step in steps]
            if row.cell in self.runs and lines:
                self.runs[row.cell][row.seed] = ComparedRun(name=row.key, method=row.cell, history=lines)
                self.after[row.cell][row.seed] = math.nan if row.after is None else row.after
        self.runs = {name: runs for name, runs in self.runs.items() if runs}
        self.calls = min((run.total(CALLS) for run in self._all()), default=0.0)
        self.baseline = study.baseline or next(iter(study.variants))

    def _all(self) -> Iterator[ComparedRun]:
        return (run for runs in self.runs.values() for run in runs.values())

    @property
    def metrics(self) -> dict[str, Callable[[str, int], float]]:
        """Each figure of a run, by its name in tables."""
        return {
            f"calls to {self.study.accuracy:.0%}": lambda cell, seed: self.calls_to(self.runs[cell][seed]),
            "area": lambda cell, seed: self.area(self.runs[cell][seed]),
            f"accuracy at {self.calls:,.0f} calls": lambda cell, seed: self.runs[cell][seed].at(
                CALLS, self.calls, ACCURACY
            ),
            "held-out after": lambda cell, seed: self.after[cell][seed],
        }

    def calls_to(self, run: ComparedRun) -> float:
        """Calls after which the accuracy of the last steps is at least the study's; where it never is, all that the run
        made (so that a mean is too low rather than left out)."""
        points = self._curve(run)
        for (x0, y0), (x1, y1) in pairwise([(0.0, -math.inf), *points]):
            if y1 >= self.study.accuracy:
                share = 1.0 if math.isinf(y0) else (self.study.accuracy - y0) / (y1 - y0)
                return x0 + max(share, 0.0) * (x1 - x0)
        return run.total(CALLS)

    def reached(self, cell: str) -> int:
        """How many runs of a cell reached the study's accuracy."""
        return sum(any(y >= self.study.accuracy for _, y in self._curve(run)) for run in self.runs[cell].values())

    def area(self, run: ComparedRun) -> float:
        """Mean accuracy over calls from the first step's to those that every run made (trapezoids)."""
        first = run.spent(CALLS)[0]
        grid = [first + (self.calls - first) * i / POINTS for i in range(POINTS + 1)]
        levels = [run.at(CALLS, x, ACCURACY) for x in grid]
        return math.fsum((a + b) / 2 for a, b in pairwise(levels)) / POINTS

    def _curve(self, run: ComparedRun) -> list[tuple[float, float]]:
        spent = run.spent(CALLS)
        return [(x, run.at(CALLS, x, ACCURACY)) for x in spent]

    def by_cell(self) -> dict[str, dict[str, Estimate]]:
        """Every figure of every cell, over the seeds that have it."""
        return {
            cell: {
                name: over_seeds(_known(figure(cell, seed) for seed in runs)) for name, figure in self.metrics.items()
            }
            for cell, runs in self.runs.items()
        }

    def differences(self) -> dict[str, dict[str, Difference]]:
        """Every figure of every cell less the baseline's, on the seeds that both have."""
        base = self.runs.get(self.baseline, {})
        values = {
            (cell, name): _known(figure(cell, seed) - figure(self.baseline, seed) for seed in runs if seed in base)
            for cell, runs in self.runs.items()
            if cell != self.baseline
            for name, figure in self.metrics.items()
        }
        corrected = holm([sign_flip_test(each) for each in values.values()])
        table: dict[str, dict[str, Difference]] = {}
        for ((cell, name), each), p_value in zip(values.items(), corrected, strict=True):
            table.setdefault(cell, {})[name] = Difference(over_seeds(each), p_value)
        return table

    def tables(self) -> list[ShownTable]:
        if not self.runs:
            return []
        names, reached = list(self.metrics), f"of them reach {self.study.accuracy:.0%}"
        levels = ShownTable(
            title="Figures by cell, mean over seeds with 95 % intervals (Student's t)",
            head=("cell", "seeds", reached, *names, "calls in all"),
            rows=[
                (
                    cell,
                    str(len(self.runs[cell])),
                    str(self.reached(cell)),
                    *(_shown(figures[name], name) for name in names),
                    f"{over_seeds([run.total(CALLS) for run in self.runs[cell].values()]).mean:,.0f}",
                )
                for cell, figures in self.by_cell().items()
            ],
            note="A run that never reaches the level counts with all of its calls. Accuracy is that of plain policy "
            "samples in training (probe lines), over the last steps.",
        )
        against = ShownTable(
            title=f"Against {self.baseline}, on the same seeds",
            head=("cell", *names),
            rows=[
                (cell, *(f"{_shown(d[name].mean, name, '+')}, p {d[name].p_value:.2g}" for name in names))
                for cell, d in self.differences().items()
            ],
            note="p-values of sign-flip tests over seeds, corrected for all comparisons of this table (Holm).",
        )
        return [levels, against] if against.rows else [levels]

    def draw(self, path: Path) -> Path | None:
        """Accuracy over calls by cell: mean over seeds, and the range that they span."""
        lines = []
        for cell, runs in self.runs.items():
            first = max(run.spent(CALLS)[0] for run in runs.values())
            last = min(run.total(CALLS) for run in runs.values())
            grid = [first + (last - first) * i / POINTS for i in range(POINTS + 1)]
            levels = [[run.at(CALLS, x, ACCURACY) for run in runs.values()] for x in grid]
            lines.append(
                Line(
                    label=cell,
                    x=grid,
                    y=[math.fsum(each) / len(each) for each in levels],
                    low=[min(each) for each in levels],
                    high=[max(each) for each in levels],
                )
            )
        panel = Panel(title="Accuracy over executed tool calls", lines=lines, x_label="tool calls", percent=True)
        return draw(path, [panel])


def _known(values: Iterable[float]) -> list[float]:
    """Without those that were not measured (NaN)."""
    return [value for value in values if not math.isnan(value)]


def _shown(value: Estimate, name: str, sign: str = "") -> str:
    if math.isnan(value.mean):
        return "-"
    form = f"{sign},.0f" if name.startswith("calls") else f"{sign}.3f"
    interval = "" if math.isnan(value.low) else f" [{value.low:{form}}, {value.high:{form}}]"
    return f"{value.mean:{form}}{interval}"
