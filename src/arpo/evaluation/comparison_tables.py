"""Evaluations side by side as tables: `arpo compare` over folders of `arpo eval --benchmark`.

Knows how figures are shown. Refuses to compute any.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from arpo.errors import ConfigError
from arpo.evaluation.comparison import Change, Side, Sides, read_sides
from arpo.evaluation.comparison_report import ShownTable
from arpo.evaluation.manifest import is_evaluation
from arpo.evaluation.reports import amount
from arpo.files import json_line, write_atomic

MOST_SHOWN = 20  # changed questions a benchmark, on the screen; comparison.md and changed.jsonl have them all
_TEXT = 90  # characters of a question


def all_evaluations(folders: Sequence[Path]) -> bool:
    """True where every folder is an evaluation. Raises ConfigError where only some are: the two kinds are not compared."""
    found = [is_evaluation(folder) for folder in folders]
    if any(found) and not all(found):
        other = str(folders[found.index(False)])
        raise ConfigError("evaluations are compared with evaluations, runs with runs", where="RUN", value=other)
    return bool(found) and all(found)


def compare_evaluations(folders: Sequence[Path], out: Path | None, console: Console) -> Sides:
    """Print tables; with `out` write OUT/comparison.md, and every question that changed sides as a line of OUT/changed.jsonl."""
    sides = read_sides(folders)
    if out is not None:
        parts = ["# Comparison", *(table.markdown() for table in tables(sides, most=None))]
        write_atomic(out / "comparison.md", "\n\n".join(parts) + "\n")
        lines = [{"side": side.name, **asdict(change)} for side, change in _changes(sides)]
        write_atomic(out / "changed.jsonl", b"".join(map(json_line, lines)))
    for table in tables(sides, most=MOST_SHOWN):
        console.print(table.rich())
    if out is not None:
        console.print(f"written: {out}/comparison.md, changed.jsonl", highlight=False, markup=False)
    return sides


def _changes(sides: Sides) -> list[tuple[Side, Change]]:
    return [
        (side, change)
        for benchmark in sides.benchmarks
        for side in sides.sides[1:]
        if benchmark in side.benchmarks
        for change in sides.changes(side, benchmark)
    ]


def tables(sides: Sides, *, most: int | None) -> list[ShownTable]:
    """By benchmark: accuracies with paired differences, costs, and the questions that changed sides (`most` of each pair)."""
    found: list[ShownTable] = []
    for benchmark in sides.benchmarks:
        having = [side for side in sides.sides if benchmark in side.benchmarks]
        title = having[0].benchmarks[benchmark].benchmark[benchmark].title
        found += [_accuracies(sides, having, benchmark, title), _costs(having, benchmark, title)]
        found += [_changed(sides, side, benchmark, title, most) for side in having[1:]]
    return [table for table in found if table.rows]


def _accuracies(sides: Sides, having: Sequence[Side], benchmark: str, title: str) -> ShownTable:
    rows, notes = [], ["95 % intervals over questions (over seeds, Student's t, where there are several)."]
    for side in having:
        cells = ["", "", "", ""]
        if side is not having[0]:
            paired, changes = sides.difference(side, benchmark), sides.changes(side, benchmark)
            gained = sum(change.after > change.before for change in changes)
            if paired is not None:
                d = paired.difference
                points = f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
                cells = [points, f"{paired.p_value:.2g}", str(gained), str(len(changes) - gained)]
            if paired is None:
                notes.append(f"{side.name} answered none of the questions that {having[0].name} answered.")
            if not sides.same_questions(side, benchmark):
                notes.append(f"{side.name} was asked other questions: only equal ids are compared.")
        rows.append([side.name, str(len(side.by_question(benchmark))), side.accuracy(benchmark).percent, *cells])
    head = ["evaluation", "questions", "accuracy", f"points over {having[0].name}", "p", "gained", "lost"]
    notes.append(
        "Points and p (sign flips): paired over the questions that both answered. Gained, lost: questions that changed sides."
    )
    return ShownTable(title=title, head=head, rows=rows, note=" ".join(notes))


def _costs(having: Sequence[Side], benchmark: str, title: str) -> ShownTable:
    costs = [side.costs(benchmark) for side in having]
    names = [name for name in costs[0] if any(each[name].mean for each in costs)]
    rows = [[side.name, *(amount(each[name]) for name in names)] for side, each in zip(having, costs, strict=True)]
    return ShownTable(title=f"{title}: what an answer costs", head=["evaluation", *names], rows=rows)


def _changed(sides: Sides, side: Side, benchmark: str, title: str, most: int | None) -> ShownTable:
    changes = sides.changes(side, benchmark)
    rows = [
        [
            "gained" if change.after > change.before else "lost",
            change.id,
            _cut(change.question, _TEXT),
            _cut(" / ".join(change.gold), 40),
            _cut(" / ".join(change.answers_before), 40),
            _cut(" / ".join(change.answers_after), 40),
        ]
        for change in _fair(changes, most)
    ]
    note = f"{len(rows)} of {len(changes)}: the others are written with --out." if len(rows) < len(changes) else ""
    head = ["side", "id", "question", "gold", sides.sides[0].name, side.name]
    return ShownTable(
        title=f"{title}: questions that changed sides with {side.name}", head=head, rows=rows, note=note, left=len(head)
    )


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
