"""A comparison of runs or evaluations as tables: `arpo compare`, in a terminal and as markdown with its plot.

Knows how figures are shown. Refuses to compute any.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from arpo.display.tables import ShownTable
from arpo.display.terminal import Console
from arpo.evaluation.comparison import BUDGETS, Change, Comparison, draw_comparison, read_comparison
from arpo.evaluation.reports import amount
from arpo.evaluation.statistics import Estimate, over_seeds
from arpo.files import json_line, write_atomic
from arpo.terminal_safe import terminal_safe

MOST_SHOWN = 20  # changed questions a pair, on the screen; comparison.md and changed.jsonl have them all
_QUESTION, _ANSWER = 90, 40  # characters shown


def compare(
    paths: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    methods: Sequence[str] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Read folders of runs or evaluations, print their tables to `console`, and write OUT/comparison.md with its plot
    and OUT/changed.jsonl with every question that changed sides, whichever are given.

    `methods` names the method of each path; without it, it follows from how the recipes differ. Raises ConfigError
    where a path holds neither.
    """
    comparison = read_comparison(paths, methods=methods)
    if console is not None:
        for table in tables(comparison, most=MOST_SHOWN):
            console.print(table.rich())
    if out is not None:
        write_comparison(comparison, Path(out))
        if console is not None:
            console.print(f"written: {out}/comparison.md, changed.jsonl")
    return comparison


def write_comparison(comparison: Comparison, out: Path) -> Path:
    plot = draw_comparison(comparison, out / "comparison.png")
    caption = "Means over neighbouring steps; a band spans a method's seeds."
    picture = [f"![Reward and accuracy on probe lines](comparison.png)\n\n{caption}"] if plot else []
    lines = [
        {"method": method, **asdict(change)}
        for evaluation in comparison.evaluations
        for method in _others(comparison, evaluation)
        for change in comparison.changes(method, evaluation)
    ]
    write_atomic(out / "changed.jsonl", b"".join(map(json_line, lines)))
    parts = ["# Comparison", *(t.markdown() for t in tables(comparison, most=None)), *picture]
    return write_atomic(out / "comparison.md", terminal_safe("\n\n".join(parts)) + "\n")


def tables(comparison: Comparison, *, most: int | None = MOST_SHOWN) -> list[ShownTable]:
    """Costs by method, training figures at equal budgets, and each shared evaluation with the questions that changed
    sides (`most` of each pair); those that have rows."""
    shown = [_training_costs(comparison), _equal(comparison)]
    for evaluation in comparison.evaluations:
        shown += [
            _evaluation(comparison, evaluation),
            _families(comparison, evaluation),
            _answer_costs(comparison, evaluation),
        ]
        shown += [_changed(comparison, method, evaluation, most) for method in _others(comparison, evaluation)]
    return [table for table in shown if table.rows]


def _others(comparison: Comparison, evaluation: str) -> list[str]:
    """The methods that are held against the first."""
    first = comparison.first(evaluation)
    return [name for name in comparison.methods if name != first and comparison.evaluated(name, evaluation)]


def _training_costs(comparison: Comparison) -> ShownTable:
    columns = {
        "leaves/all": "leaves",
        "calls/answered": "tool calls",
        "tokens/generated": "tokens generated",
        "tokens/forward_unique": "tokens learnt on",
        "seconds/step": "seconds",
    }
    rows = []
    for method, runs in comparison.methods.items() if any(run.history for run in comparison.runs) else ():
        steps = over_seeds([float(len(run.history)) for run in runs]).mean
        totals = [over_seeds([run.total(metric) for run in runs]).mean for metric in columns]
        rows.append([method, str(len(runs)), f"{steps:g}", *(f"{total:,.0f}" for total in totals)])
    note = "Means over the runs of a method." if any(len(runs) > 1 for runs in comparison.methods.values()) else ""
    return ShownTable(
        title="What the runs cost", head=["method", "runs", "steps", *columns.values()], rows=rows, note=note
    )


def _equal(comparison: Comparison) -> ShownTable:
    """Accuracy and reward on probe lines where every run has spent the same."""
    head, columns = ["method"], []
    for budget, label in BUDGETS.items():
        for metric, short in (("accuracy/probe_lines", "accuracy"), ("reward/probe_lines", "reward")):
            spent, levels = comparison.at_equal(budget, metric)
            if spent > 0:
                head.append(f"{short} at {spent:,.0f} {label}")
                columns.append([_level(levels[method], share=short == "accuracy") for method in comparison.methods])
    rows = [[method, *cells] for method, *cells in zip(comparison.methods, *columns, strict=True)] if columns else []
    note = (
        "On probe lines, a mean over the last steps up to the point where every run has spent the same. Several runs: "
        "mean ± half of the 95 % interval over seeds."
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
    first = comparison.first(evaluation)
    rows = []
    notes = [
        "95 % intervals: over questions for one run, over seeds (Student's t) for several. Points and p (sign flips): "
        f"difference from {first}, paired over the questions that both answered. "
        "Gained, lost: questions that changed sides."
    ]
    for method in comparison.methods:
        evaluated, estimate = comparison.evaluated(method, evaluation), comparison.accuracy(method, evaluation)
        if estimate is None:
            continue
        cells = ["", "", "", ""]
        if method != first:
            paired, changes = comparison.difference(method, evaluation), comparison.changes(method, evaluation)
            gained = sum(change.after > change.before for change in changes)
            if paired is None:
                notes.append(f"{method} answered none of the questions that {first} answered.")
            else:
                d = paired.difference
                points = f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
                cells = [points, f"{paired.p_value:.2g}", str(gained), str(len(changes) - gained)]
            if not comparison.same_questions(method, evaluation):
                notes.append(f"{method} was asked other questions: only equal ids are compared.")
        rows.append([method, str(len(evaluated)), str(evaluated[0].result.questions), estimate.percent, *cells])
    head = ["method", "runs", "questions", "accuracy", f"points over {first}", "p", "gained", "lost"]
    return ShownTable(title=f"Evaluation: {evaluation}", head=head, rows=rows, note=" ".join(notes))


def _families(comparison: Comparison, evaluation: str) -> ShownTable:
    by_method = {method: comparison.families(method, evaluation) for method in comparison.methods}
    names = sorted({name for families in by_method.values() for name in families})
    rows = [
        [name, *(_level(families[name], share=True) if name in families else "-" for families in by_method.values())]
        for name in (names if len(names) > 1 else ())
    ]
    return ShownTable(title=f"Evaluation: {evaluation}, by family", head=["family", *by_method], rows=rows)


def _answer_costs(comparison: Comparison, evaluation: str) -> ShownTable:
    costs = {m: comparison.costs(m, evaluation) for m in comparison.methods if comparison.evaluated(m, evaluation)}
    names = [name for name in next(iter(costs.values())) if any(each[name].mean for each in costs.values())]
    rows = [[method, *(amount(each[name]) for name in names)] for method, each in costs.items() if names]
    return ShownTable(title=f"Evaluation: {evaluation}, what an answer costs", head=["method", *names], rows=rows)


def _changed(comparison: Comparison, method: str, evaluation: str, most: int | None) -> ShownTable:
    changes = comparison.changes(method, evaluation)
    rows = [
        [
            "gained" if change.after > change.before else "lost",
            change.id,
            _cut(change.question, _QUESTION),
            *(_cut(" / ".join(texts), _ANSWER) for texts in (change.gold, change.answers_before, change.answers_after)),
        ]
        for change in _fair(changes, most)
    ]
    note = f"{len(rows)} of {len(changes)}: the others are written with --out." if len(rows) < len(changes) else ""
    head = ["side", "id", "question", "gold", comparison.first(evaluation), method]
    title = f"Evaluation: {evaluation}, questions that changed sides with {method}"
    return ShownTable(title=title, head=head, rows=rows, note=note, left=len(head))


def _fair(changes: Sequence[Change], most: int | None) -> list[Change]:
    """The first of those lost and of those gained, half and half as far as there are so many."""
    lost, gained = ([c for c in changes if (c.after > c.before) is up] for up in (False, True))
    if most is None or len(changes) <= most:
        return [*lost, *gained]
    num_lost = max(min(len(lost), most // 2), most - len(gained))
    return [*lost[:num_lost], *gained[: most - num_lost]]


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
