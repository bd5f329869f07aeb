"""The results of an evaluation as people read them: in a terminal, as report.md, and as report.html in one file.

Knows how figures are shown. Refuses to compute any.
"""

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo.display.charts import Line, Panel, draw
from arpo.display.tables import ShownTable
from arpo.display.terminal import Console
from arpo.evaluation.manifest import EvalManifest
from arpo.evaluation.results import COSTS, POWERS, EvalResults, summarise
from arpo.evaluation.statistics import Estimate
from arpo.files import write_atomic
from arpo.terminal_safe import terminal_safe

CURVES = "plots/curves.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    title: str
    path: Path  # from the evaluation's folder on
    caption: str


Part = ShownTable | Picture


def write_all(folder: Path, manifest: EvalManifest) -> EvalResults | None:
    """Everything that follows from a folder's samples: results.json, report.md, report.html, plots. None where there is
    no sample yet."""
    results = summarise(folder, manifest)
    if results is None:
        return None
    parts: list[Part] = [*tables(results)]
    if drawn := draw(folder / CURVES, _panels(results)):
        caption = (
            "What the accuracy would be had every answer to come within so many tool calls; and pass@k. "
            "Bands: 95 % over questions."
        )
        parts.append(
            Picture(title="Accuracy against tool calls and samples", path=drawn.relative_to(folder), caption=caption)
        )
    parts += _pictures(results.studies, folder)
    opening = _opening(results)
    write_atomic(folder / "report.md", terminal_safe(_markdown(opening, parts)))
    write_atomic(folder / "report.html", _page(folder, opening, parts))
    return results


def print_results(console: Console, results: EvalResults) -> None:
    console.print(f"{results.name} ({results.sampling}): {results.model}", style="bold")
    for table in tables(results):
        console.print(table.rich())
    for text in results.warnings:
        console.print(text)


# --- tables


def tables(results: EvalResults) -> list[ShownTable]:
    """Scores, what an answer cost, pass@k, accuracy by level and category, endings, failures; those that have rows."""
    shown = [
        _scores(results),
        _measures(results),
        _passes(results),
        _costs(results),
        *(
            ShownTable(title=f"{each.title}, by {what}", head=[what, "questions", "accuracy"], rows=_groups(groups))
            for each in results.benchmarks
            for what, groups in (("level", each.by_level), ("category", each.by_category), ("family", each.by_family))
        ),
        _endings(results),
        _failures(results),
        *(table for study in results.studies.values() for table in study_tables(study)),
    ]
    return [table for table in shown if table.rows]


def _scores(results: EvalResults) -> ShownTable:
    rows = [[each.title, str(each.questions), each.metric or "-", each.accuracy.percent] for each in results.benchmarks]
    if len(rows) > 1:
        rows.append(["mean", "", "", results.mean.percent])
    judged = [each.title for each in results.benchmarks if each.judged]
    note = "95 % intervals over questions." + (
        f" The authors of {', '.join(judged)} let a model judge: a rule is mostly stricter, now and then kinder."
        if judged
        else ""
    )
    return ShownTable(title="Accuracy", head=["benchmark", "questions", "measure", "accuracy"], rows=rows, note=note)


def _measures(results: EvalResults) -> ShownTable:
    names = sorted({name for each in results.benchmarks for name in each.measures})
    rows = [
        [each.title, *(_percent(each.measures.get(name)) for name in names)]
        for each in results.benchmarks
        if each.measures
    ]
    return ShownTable(title="The same answers by other measures", head=["benchmark", *names], rows=rows)


def _passes(results: EvalResults) -> ShownTable:
    ks = sorted({k for each in results.benchmarks for k in each.pass_at})
    ks = [k for k in ks if k > 1 and (k in POWERS or k == max(ks))]
    rows = [[each.title, *(_percent(each.pass_at.get(k)) for k in ks)] for each in results.benchmarks] if ks else []
    note = (
        "Unbiased: 1 - C(n - c, k) / C(n, k), mean over questions; "
        "an answer counts as right from an accuracy of 0.5 on."
    )
    return ShownTable(title="pass@k", head=["benchmark", *(f"pass@{k}" for k in ks)], rows=rows, note=note)


def _costs(results: EvalResults) -> ShownTable:
    names = [name for name in COSTS if any(each.costs[name].mean for each in results.benchmarks)]
    rows = [
        [each.title, *(amount(each.costs[name]) for name in names), _plain(each.productivity)]
        for each in results.benchmarks
    ]
    note = "Means of an answer with 95 % intervals over questions. Productivity: right answers a tool call."
    return ShownTable(title="What an answer costs", head=["benchmark", *names, "productivity"], rows=rows, note=note)


def _groups(groups: Mapping[str, Estimate]) -> list[list[str]]:
    return [[name, str(estimate.n), estimate.percent] for name, estimate in groups.items()] if len(groups) > 1 else []


def _endings(results: EvalResults) -> ShownTable:
    names = sorted({name for each in results.benchmarks for name in each.endings})
    rows = [
        [each.title, *(f"{each.endings.get(name, 0) / each.answers:.1%}" for name in names)]
        for each in results.benchmarks
    ]
    return ShownTable(
        title="How answers ended", head=["benchmark", *(name.replace("_", " ") for name in names)], rows=rows
    )


def _failures(results: EvalResults) -> ShownTable:
    rows = [[each.title, reason, str(count)] for each in results.benchmarks for reason, count in each.failures.items()]
    note = "Infrastructure failed, not the model; they count as wrong. Asked once more with --resume --again."
    return ShownTable(title="Failures", head=["benchmark", "reason", "answers"], rows=rows[:20], note=note, left=2)


def study_tables(study: object) -> list[ShownTable]:
    """The tables that a study brings (`tables`: [{title, head, rows, note}])."""
    return [
        ShownTable(
            title=str(table["title"]),
            head=[str(cell) for cell in table["head"]],
            rows=[[str(cell) for cell in row] for row in table["rows"]],
            note=str(table.get("note", "")),
        )
        for table in (study.get("tables", ()) if isinstance(study, Mapping) else ())
    ]


def _pictures(studies: Mapping[str, Any], folder: Path) -> list[Picture]:
    """What studies have drawn (`pictures`: [{title, path, says}], paths from the folder on), as far as it is there."""
    entries = [
        picture for study in studies.values() if isinstance(study, Mapping) for picture in study.get("pictures", ())
    ]
    pictures = [
        Picture(title=str(each["title"]), path=Path(each["path"]), caption=str(each["says"])) for each in entries
    ]
    return [each for each in pictures if (folder / each.path).is_file()]


def _percent(estimate: Estimate | None) -> str:
    return "-" if estimate is None else estimate.percent


def amount(estimate: Estimate) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    if math.isnan(estimate.low) or estimate.low == estimate.high:
        return number(estimate.mean)
    return f"{number(estimate.mean)} [{number(estimate.low)}, {number(estimate.high)}]"


def _plain(estimate: Estimate) -> str:
    return (
        "-"
        if math.isnan(estimate.mean)
        else f"{estimate.mean:.2f}"
        + ("" if math.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]")
    )


def _panels(results: EvalResults) -> list[Panel]:
    budgets = [_curve(each.title, each.by_budget) for each in results.benchmarks if len(each.by_budget) > 1]
    passes = [_curve(each.title, each.pass_at) for each in results.benchmarks if len(each.pass_at) > 1]
    return [
        Panel(
            title="Accuracy within a budget of tool calls", lines=budgets, x_label="tool calls allowed", percent=True
        ),
        Panel(title="pass@k", lines=passes, x_label="k", percent=True),
    ]


def _curve(label: str, points: Mapping[int, Estimate]) -> Line:
    ordered = sorted(points.items())
    return Line(
        label=label,
        x=[x for x, _ in ordered],
        y=[e.mean for _, e in ordered],
        low=[e.low for _, e in ordered],
        high=[e.high for _, e in ordered],
    )


# --- text


def _opening(results: EvalResults) -> list[tuple[str, str]]:
    manifest = results.manifest
    settings = manifest.settings
    how = (
        "greedy"
        if not settings.get("temperature")
        else f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}"
    )
    facts = [
        ("model", manifest.model),
        ("recipe", manifest.recipe + (f", preset {manifest.preset}" if manifest.preset else "")),
        ("answers", f"{manifest.samples} a question, {how}, seed {settings.get('seed')}"),
        ("limits", f"{settings['max_calls']} tool calls, {settings['branch_tokens']:,} tokens"),
    ]
    facts += (
        [("part", ", ".join(f"{name} {_listed(value)}" for name, value in manifest.parts.items()))]
        if manifest.parts
        else []
    )
    return [*facts, *(("note", text) for text in results.warnings)]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _markdown(opening: Sequence[tuple[str, str]], parts: Sequence[Part]) -> str:
    facts = "\n".join(f"- {name}: {text}" for name, text in opening)
    shown = [
        part.markdown()
        if isinstance(part, ShownTable)
        else f"## {part.title}\n\n![{part.title}]({part.path.as_posix()})\n\n{part.caption}"
        for part in parts
    ]
    return "\n\n".join(["# Evaluation", facts, *shown]) + "\n"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; vertical-align: bottom; border-bottom: 1px solid #8884; }
th.text, td.text { text-align: left; }
td.text { min-width: 6rem; }
th { font-weight: 600; }
dt { font-weight: 600; float: left; clear: left; width: 6rem; } dd { margin-left: 7rem; }
p.note { opacity: .7; max-width: 50rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
"""


def _page(folder: Path, opening: Sequence[tuple[str, str]], parts: Sequence[Part]) -> str:
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in opening)
    body = "\n".join(_table(part) if isinstance(part, ShownTable) else _picture(folder, part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Evaluation: {html.escape(opening[0][1])}</title>"
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>Evaluation</h1><dl>{facts}</dl>\n{body}\n</body></html>\n"
    )


def _table(table: ShownTable) -> str:
    head = _cells("th", table.head, table.left)
    rows = "\n".join(f"<tr>{_cells('td', row, table.left)}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{html.escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody>"
        f"</table>{note}"
    )


def _cells(tag: str, cells: Sequence[str], left: int) -> str:
    side = [' class="text"' if number < left else "" for number in range(len(cells))]
    # an interval moves to a second line rather than out of sight, but stays in one piece
    texts = [
        re.sub(r" (?!\[)", "&nbsp;", html.escape(cell)) if cell.endswith("]") else html.escape(cell) for cell in cells
    ]
    return "".join(f"<{tag}{where}>{cell}</{tag}>" for where, cell in zip(side, texts, strict=True))


def _picture(folder: Path, picture: Picture) -> str:
    raw = base64.b64encode((folder / picture.path).read_bytes()).decode("ascii")
    title = html.escape(picture.title)
    return (
        f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{raw}">'
        f'<p class="note">{html.escape(picture.caption)}</p>'
    )
