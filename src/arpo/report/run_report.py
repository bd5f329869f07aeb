"""The report of a run: report.md with plots beside it, made from the run folder alone.

Knows the run folder and the names of metrics. Refuses to know models and trees. Works for a run that is still going or
was cut off: what is not there is left out.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arpo.display.charts import draw
from arpo.display.progress import duration
from arpo.display.tables import markdown_table
from arpo.evaluation.results import BenchmarkResult, by_name, read_evaluations
from arpo.evaluation.statistics import paired_difference
from arpo.files import write_atomic
from arpo.report.figures import History, figures
from arpo.runs.folder import VALIDATION, RunFolder
from arpo.terminal_safe import terminal_safe
from arpo.tools.usage import read_usage
from arpo.tools.usage import table as calls_table
from arpo.yaml_positions import flat

_MAX_NOTES, _MAX_SAMPLES, _MAX_SAMPLE_TEXT = 40, 3, 4_000


def write_report(run_folder: Path | str, *, state: str = "") -> Path:
    """Write RUN/report.md and RUN/plots/*.png; `state`: how the run is about to end, where its summary does not say so
    yet.

    Raises ConfigError where the folder holds no run."""
    run = RunFolder(run_folder)
    history, results, summary = run.metrics(), by_name(read_evaluations(run.path)), run.summary()
    finals = {name: r for name, r in results.items() if not name.startswith(VALIDATION)}
    sections = [
        _opening(run, history, state or run.state()),
        _evaluations(finals),
        _families(finals),
        _gates(summary),
        _calls(run.path, history),
        _notes(run.notes()),
        _plots(run.path, history, results),
        _samples(run.samples()),
        _settings(run),
        _environment(run.environment()),
    ]
    text = "\n\n".join(section for section in sections if section)
    return write_atomic(run.path / "report.md", terminal_safe(text) + "\n")


# --- sections of text


_TOTALS = (
    *("leaves/all", "calls/answered", "calls/inherited", "tokens/generated", "tokens/trained_unique"),
    *("tokens/trained_flat", "engine/prefill_tokens", "engine/reused_tokens", "seconds/step"),
)


def _opening(run: RunFolder, history: History, state: str) -> str:
    facts: list[tuple[str, str]] = [("state", state), ("steps", str(len(history)))]
    if history:
        total = {key: sum(float(m.get(key) or 0) for m in history) for key in _TOTALS}
        facts += [
            ("time in steps", duration(total["seconds/step"])),
            ("leaves", f"{total['leaves/all']:,.0f}"),
            ("tool calls answered / inherited", f"{total['calls/answered']:,.0f} / {total['calls/inherited']:,.0f}"),
            ("tokens generated", f"{total['tokens/generated']:,.0f}"),
            (
                "tokens trained, once each / flat",
                f"{total['tokens/trained_unique']:,.0f} / {total['tokens/trained_flat']:,.0f}",
            ),
        ]
        if any("engine/prefill_tokens" in m for m in history):
            read = f"{total['engine/prefill_tokens']:,.0f} / {total['engine/reused_tokens']:,.0f}"
            facts.append(("prompt tokens that the engine computed / knew", read))
        for name in ("accuracy/probe_lines", "reward/probe_lines"):
            values = [float(m[name]) for m in history if m.get(name) is not None]
            near = max(1, min(5, len(values) // 2))
            if values:
                title = (
                    name.partition("/")[0]
                    + " on probe lines, first → last "
                    + (f"{near} steps" if near > 1 else "step")
                )
                facts.append((title, f"{sum(values[:near]) / near:.3f} → {sum(values[-near:]) / near:.3f}"))
    return (
        f"# Run `{run.path.resolve().name}`\n\n{markdown_table(['', ''], facts)}\n\n"
        f"Written {time.strftime('%Y-%m-%d %H:%M')}."
    )


def _evaluations(finals: Mapping[str, BenchmarkResult]) -> str:
    if not finals:
        return ""
    ks = sorted({k for r in finals.values() for k in r.pass_at if k > 1})[-2:]
    rows = [
        [name, r.questions, r.answers, r.accuracy.percent, f"{r.reward.mean:.3f}",
         *(r.pass_at[k].percent if k in r.pass_at else "-" for k in ks)]
        for name, r in finals.items()
    ]  # fmt: skip
    text = "## Evaluations\n\nMean accuracy over questions with its 95 % interval.\n\n"
    text += markdown_table(["", "questions", "samples", "accuracy", "reward", *(f"pass@{k}" for k in ks)], rows)
    differences = [
        f"- `{after}` minus `{before}`, on the same questions: "
        f"**{100 * d.difference.mean:+.1f} points** "
        f"[{100 * d.difference.low:+.1f}, {100 * d.difference.high:+.1f}], p = {d.p_value:.2g}"
        for before, after in _pairs(finals)
        if (d := paired_difference(finals[before].by_question, finals[after].by_question))
    ]
    return text + ("\n\n" + "\n".join(differences) if differences else "")


def _pairs(finals: Mapping[str, BenchmarkResult]) -> list[tuple[str, str]]:
    """Names that differ in before/after alone and share questions."""
    named = [(name, name.replace("before", "after")) for name in finals if "before" in name]
    return [(a, b) for a, b in named if b in finals and finals[a].by_question.keys() & finals[b].by_question.keys()]


def _families(finals: Mapping[str, BenchmarkResult]) -> str:
    sections = []
    for title, attribute in (("family", "by_family"), ("level", "by_level")):
        groups = {name: getattr(r, attribute) for name, r in finals.items() if getattr(r, attribute)}
        names = sorted({group for found in groups.values() for group in found})
        if len(names) > 1:
            sizes = {g: max(found[g].n for found in groups.values() if g in found) for g in names}
            rows = [
                [g, sizes[g], *(found[g].percent if g in found else "-" for found in groups.values())] for g in names
            ]
            sections.append(f"### By {title}\n\n" + markdown_table([title, "questions", *groups], rows))
    return "\n\n".join(sections)


def _gates(summary: Mapping[str, Any]) -> str:
    gates = summary.get("gates")
    if not isinstance(gates, list) or not gates:
        return ""
    rows = [
        [
            gate["what"],
            f"{gate['goal']:.2f}",
            "-" if gate.get("measured") is None else f"{gate['measured']:.2f}",
            "yes" if gate["holds"] else "**no**",
        ]
        for gate in gates
    ]
    table = markdown_table(["", "at least", "measured", "holds"], rows)
    return f"## Gates\n\nMeasured on the first collected step, before its update.\n\n{table}"


def _calls(folder: Path, history: History) -> str:
    """What became of the run's calls, tool by tool, and what branching saved."""
    accounts = read_usage(folder)
    if not accounts:
        return ""
    header, rows = calls_table(accounts)
    text = f"## Tool calls\n\nOf training, the cold start and evaluations together.\n\n{markdown_table(header, rows)}"
    asked = sum(float(m.get("calls/asked") or 0) for m in history)
    if inherited := sum(float(m.get("calls/inherited") or 0) for m in history):
        text += (
            f"\n\nCalls of training that branching saved: {inherited:,.0f}, besides {asked:,.0f} that were asked for."
        )
    faults = Counter[str]()
    for account in accounts.values():
        faults.update(account["faults"])
    if faults:
        text += "\n\nFailures: " + ", ".join(f"{kind} ({count:,})" for kind, count in faults.most_common(8)) + "."
    return text


def _notes(notes: Sequence[Mapping[str, Any]]) -> str:
    if not notes:
        return ""
    warnings = [n for n in notes if n.get("level") == "warning"]
    others = [n for n in notes if n.get("level") != "warning"]
    shown = (warnings + others)[:_MAX_NOTES]
    rows = [[n.get("level", ""), "" if n.get("step") is None else n["step"], n.get("text", "")] for n in shown]
    rest = f"\n\n{len(notes) - len(shown)} more in notes.jsonl." if len(notes) > len(shown) else ""
    return "## Warnings and events\n\n" + markdown_table(["", "step", "what"], rows, left=3) + rest


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """The first, the middle and the last."""
    if not samples:
        return ""
    chosen = sorted({0, len(samples) // 2, len(samples) - 1})[:_MAX_SAMPLES]
    parts = ["## Sample trajectories"]
    for sample in (samples[i] for i in chosen):
        facts = ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in sample.items()
            if key not in ("text", "step", "question")
        )
        question = f"**{sample['question']}**\n\n" if sample.get("question") else ""
        text = str(sample.get("text", ""))
        cut = text if len(text) <= _MAX_SAMPLE_TEXT else text[:_MAX_SAMPLE_TEXT] + "\n[cut]"
        fence = "`" * max(3, _longest_run(cut, "`") + 1)
        parts.append(
            f"### Step {sample.get('step', '?')}{' (' + facts + ')' if facts else ''}\n\n{question}{fence}text\n"
            f"{cut}\n{fence}"
        )
    return "\n\n".join(parts)


def _longest_run(text: str, character: str) -> int:
    longest = run = 0
    for c in text:
        run = run + 1 if c == character else 0
        longest = max(longest, run)
    return longest


def _settings(run: RunFolder) -> str:
    rows = [[f"`{key}`", "" if value is None else value] for key, value in flat(run.recipe_values()).items()]
    return (
        "## Settings\n\n<details><summary>The whole recipe</summary>\n\n"
        + markdown_table(["key", "value"], rows, left=2)
        + "\n\n</details>"
    )


def _environment(started: Sequence[Mapping[str, Any]]) -> str:
    if not started:
        return ""
    last = started[-1]
    rows = [[key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping)
             else " ".join(map(str, value)) if isinstance(value, list) else value]
            for key, value in last.items() if value not in (None, "", []) and key != "time"]  # fmt: skip
    times = f"Started {len(started)} times; the last:\n\n" if len(started) > 1 else ""
    return "## Environment\n\n" + times + markdown_table(["", ""], rows, left=2)


# --- plots


def _plots(folder: Path, history: History, results: Mapping[str, BenchmarkResult]) -> str:
    if not history:
        return "No step is finished yet."
    parts = ["## Curves"]
    for figure in figures(history, results):
        if draw(folder / "plots" / f"{figure.name}.png", figure.panels, columns=figure.columns) is not None:
            parts.append(
                f"![{figure.title}](plots/{figure.name}.png)" + (f"\n\n{figure.caption}" if figure.caption else "")
            )
    return "\n\n".join(parts)
