"""A comparison of runs as tables: in a terminal (rich) and as markdown with its plot.

Knows how figures are shown. Refuses to compute any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arpo.display.markdown import markdown_table
from arpo.evaluation.run_comparison import BUDGETS, Comparison, draw_comparison, read_comparison
from arpo.evaluation.statistics import Estimate, over_seeds
from arpo.files import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTable:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1  # the first columns, which hold text

    def markdown(self) -> str:
        return f"## {self.title}\n\n{markdown_table(self.head, self.rows, left=self.left)}" + (
            f"\n\n{self.note}" if self.note else ""
        )

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for number, name in enumerate(self.head):
            longest = max(map(len, name.split()), default=1)  # no word of a header is broken
            table.add_column(name, justify="right" if number >= self.left else "left", overflow="fold", min_width=longest)
        for row in self.rows:
            table.add_row(*row)
        return table


def compare(
    paths: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    methods: Sequence[str] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Read run folders, print their tables to `console` and write OUT/comparison.md with its plot, whichever are given.

    `methods` names the method of each path; without it, it follows from how the recipes differ. Raises ConfigError where a path
    holds no run.
    """
    comparison = read_comparison(paths, methods=methods)
    if console is not None:
        for table in tables(comparison):
            console.print(table.rich())
    if out is not None:
        write_comparison(comparison, out)
    return comparison


def write_comparison(comparison: Comparison, out: Path | str) -> Path:
    plot = draw_comparison(comparison, Path(out) / "comparison.png")
    picture = [
        "![Reward and accuracy on probe lines](comparison.png)\n\nMeans over neighbouring steps; a band spans a method's seeds."
    ]
    parts = ["# Comparison", *(t.markdown() for t in tables(comparison)), *(picture if plot else [])]
    return write_atomic(Path(out) / "comparison.md", "\n\n".join(parts) + "\n")


def tables(comparison: Comparison) -> list[ShownTable]:
    """Costs by method, training figures at equal budgets, and each shared evaluation."""
    found = [_costs(comparison), _equal(comparison)]
    for evaluation in comparison.evaluations:
        found += [_evaluation(comparison, evaluation), _families(comparison, evaluation)]
    return [table for table in found if table.rows]


def _costs(comparison: Comparison) -> ShownTable:
    columns = {
        "leaves/all": "leaves",
        "calls/answered": "tool calls",
        "tokens/generated": "tokens generated",
        "tokens/forward_unique": "tokens learnt on",
        "seconds/step": "seconds",
    }
    rows = []
    for method, runs in comparison.methods.items():
        steps = over_seeds([float(len(run.history)) for run in runs]).mean
        totals = [over_seeds([run.total(metric) for run in runs]).mean for metric in columns]
        rows.append([method, str(len(runs)), f"{steps:g}", *(f"{total:,.0f}" for total in totals)])
    note = "Means over the runs of a method." if any(len(runs) > 1 for runs in comparison.methods.values()) else ""
    return ShownTable(title="What the runs cost", head=["method", "runs", "steps", *columns.values()], rows=rows, note=note)


def _equal(comparison: Comparison) -> ShownTable:
    """Accuracy and reward on probe lines where every run has spent the same."""
    head, columns = ["method"], []
    for budget, label in BUDGETS.items():
        for metric, short in (("accuracy/probe_lines", "accuracy"), ("reward/probe_lines", "reward")):
            spent, found = comparison.at_equal(budget, metric)
            if spent > 0:
                head.append(f"{short} at {spent:,.0f} {label}")
                columns.append([_level(found[method], share=short == "accuracy") for method in comparison.methods])
    rows = [[method, *cells] for method, *cells in zip(comparison.methods, *columns, strict=True)] if columns else []
    note = (
        "On probe lines, a mean over the last steps up to the point where every run has spent the same. Several runs: mean ± half "
        "of the 95 % interval over seeds."
    )
    return ShownTable(title="Training at equal budgets", head=head, rows=rows, note=note)


def _level(estimate: Estimate, *, share: bool) -> str:
    if math.isnan(estimate.mean):
        return "-"
    half = "" if math.isnan(estimate.low) else (estimate.high - estimate.low) / 2
    if share:
        return f"{100 * estimate.mean:.1f} %" + (f" ± {100 * half:.1f}" if isinstance(half, float) else "")
    return f"{estimate.mean:.3f}" + (f" ± {half:.3f}" if isinstance(half, float) else "")


def _evaluation(comparison: Comparison, evaluation: str) -> ShownTable:
    first = next(iter(comparison.methods))
    rows = []
    for method, runs in comparison.methods.items():
        estimate = comparison.accuracy(method, evaluation)
        if estimate is None:
            continue
        paired = None if method == first else comparison.difference(method, evaluation)
        cells = ["", ""]
        if paired is not None:
            d = paired.difference
            cells = [f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]", f"{paired.p_value:.2g}"]
        asked = [run.results[evaluation].num_questions for run in runs if evaluation in run.results]
        rows.append([method, str(len(asked)), str(asked[0]), estimate.percent, *cells])
    note = (
        f"95 % intervals: over questions for one run, over seeds (Student's t) for several. Points: difference from {first} on the "
        "same questions, interval over questions."
    )
    head = ["method", "runs", "questions", "accuracy", f"points over {first}", "p"]
    return ShownTable(title=f"Evaluation: {evaluation}", head=head, rows=rows, note=note)


def _families(comparison: Comparison, evaluation: str) -> ShownTable:
    by_method = {
        method: [run.results[evaluation].by_family for run in runs if evaluation in run.results]
        for method, runs in comparison.methods.items()
    }
    names = sorted({name for found in by_method.values() for families in found for name in families})
    rows = []
    for name in names:
        cells = []
        for found in by_method.values():
            estimates = [families[name] for families in found if name in families]
            one = estimates[0] if len(estimates) == 1 else over_seeds([e.mean for e in estimates])
            cells.append(_level(one, share=True) if estimates else "-")
        rows.append([name, *cells])
    return ShownTable(
        title=f"Evaluation: {evaluation}, by family", head=["family", *by_method], rows=rows if len(names) > 1 else []
    )
