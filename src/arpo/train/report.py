"""The report of a run: report.md with plots beside it, made from the run folder alone.

Knows the run folder and the names of metrics. Refuses to know models and trees. Works for a run that is still going or was cut off:
what is not there is left out.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from arpo.evaluation.charts import Line, Panel, draw
from arpo.evaluation.metrics import paired_difference
from arpo.evaluation.results import Results, read_all_results
from arpo.files import write_atomic
from arpo.train.progress import duration
from arpo.train.runfolder import RunFolder

History = Sequence[Mapping[str, Any]]
_VALIDATION = "validation"
_MAX_NOTES, _MAX_SAMPLES, _MAX_SAMPLE_TEXT = 40, 3, 4_000


def write_report(run_folder: Path | str) -> Path:
    """Write RUN/report.md and RUN/plots/*.png. Raises ConfigError where the folder holds no run."""
    run = RunFolder(run_folder)
    history, results, summary = run.metrics(), read_all_results(run.path), run.summary()
    finals = {name: r for name, r in results.items() if not name.startswith(_VALIDATION)}
    sections = [
        _opening(run, history, summary),
        _evaluations(finals),
        _families(finals),
        _gates(summary),
        _notes(run.notes()),
        _plots(run.path, history, results),
        _samples(run.samples()),
        _settings(run),
        _environment(run.environment()),
    ]
    return write_atomic(run.path / "report.md", "\n\n".join(section for section in sections if section) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """A markdown table; the first `left` columns are aligned left, the others right."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *cells])


# --- sections of text


def _opening(run: RunFolder, history: History, summary: Mapping[str, Any]) -> str:
    state = "still going" if run.is_live() else str(summary.get("status") or "cut off before its end")
    facts: list[tuple[str, str]] = [("state", state), ("steps", str(len(history)))]
    if history:
        total = {key: sum(float(m.get(key) or 0) for m in history) for key in ("leaves/all", "calls/executed", "calls/inherited",
                 "tokens/generated", "tokens/trained_unique", "tokens/trained_flat", "seconds/step")}  # fmt: skip
        facts += [
            ("time in steps", duration(total["seconds/step"])),
            ("leaves", f"{total['leaves/all']:,.0f}"),
            ("tool calls executed / inherited", f"{total['calls/executed']:,.0f} / {total['calls/inherited']:,.0f}"),
            ("tokens generated", f"{total['tokens/generated']:,.0f}"),
            ("tokens trained, once each / flat", f"{total['tokens/trained_unique']:,.0f} / {total['tokens/trained_flat']:,.0f}"),
        ]
        for name in ("accuracy/probe_lines", "reward/probe_lines"):
            values = [float(m[name]) for m in history if m.get(name) is not None]
            near = max(1, min(5, len(values) // 2))
            if values:
                title = name.partition("/")[0] + " on probe lines, first → last " + (f"{near} steps" if near > 1 else "step")
                facts.append((title, f"{sum(values[:near]) / near:.3f} → {sum(values[-near:]) / near:.3f}"))
    return f"# Run `{run.path.resolve().name}`\n\n{table(['', ''], facts)}\n\nWritten {time.strftime('%Y-%m-%d %H:%M')}."


def _evaluations(finals: Mapping[str, Results]) -> str:
    if not finals:
        return ""
    ks = sorted({k for r in finals.values() for k in r.pass_at if k > 1})[-2:]
    rows = [
        [name, r.num_questions, len(r.samples), r.accuracy.percent, f"{r.reward.mean:.3f}",
         *(r.pass_at[k].percent if k in r.pass_at else "-" for k in ks)]
        for name, r in finals.items()
    ]  # fmt: skip
    text = "## Evaluations\n\nMean accuracy over questions with its 95 % interval.\n\n"
    text += table(["", "questions", "samples", "accuracy", "reward", *(f"pass@{k}" for k in ks)], rows)
    differences = [
        f"- `{after}` minus `{before}`, on the same questions: "
        f"**{100 * d.difference.mean:+.1f} points** [{100 * d.difference.low:+.1f}, {100 * d.difference.high:+.1f}], p = {d.p_value:.2g}"
        for before, after in _pairs(finals)
        if (d := paired_difference(finals[before].accuracy_by_question, finals[after].accuracy_by_question))
    ]
    return text + ("\n\n" + "\n".join(differences) if differences else "")


def _pairs(finals: Mapping[str, Results]) -> list[tuple[str, str]]:
    """Names that differ in before/after alone and share questions."""
    named = [(name, name.replace("before", "after")) for name in finals if "before" in name]
    return [
        (a, b) for a, b in named if b in finals and finals[a].accuracy_by_question.keys() & finals[b].accuracy_by_question.keys()
    ]


def _families(finals: Mapping[str, Results]) -> str:
    sections = []
    for title, attribute in (("family", "by_family"), ("level", "by_level")):
        groups = {name: getattr(r, attribute) for name, r in finals.items() if getattr(r, attribute)}
        names = sorted({group for found in groups.values() for group in found})
        if len(names) > 1:
            sizes = {g: max(found[g].n for found in groups.values() if g in found) for g in names}
            rows = [[g, sizes[g], *(found[g].percent if g in found else "-" for found in groups.values())] for g in names]
            sections.append(f"### By {title}\n\n" + table([title, "questions", *groups], rows))
    return "\n\n".join(sections)


def _gates(summary: Mapping[str, Any]) -> str:
    gates = summary.get("gates")
    if not isinstance(gates, list) or not gates:
        return ""
    rows = []
    for gate in gates:
        measured = gate.get("measured")
        rows.append(
            [
                gate["what"],
                f"{gate['goal']:.2f}",
                "-" if measured is None else f"{measured:.2f}",
                "yes" if gate["holds"] else "**no**",
            ]
        )
    return "## Gates\n\nMeasured on the first collected step, before its update.\n\n" + table(
        ["", "at least", "measured", "holds"], rows
    )


def _notes(notes: Sequence[Mapping[str, Any]]) -> str:
    if not notes:
        return ""
    warnings = [n for n in notes if n.get("level") == "warning"]
    others = [n for n in notes if n.get("level") != "warning"]
    shown = (warnings + others)[:_MAX_NOTES]
    rows = [[n.get("level", ""), "" if n.get("step") is None else n["step"], n.get("text", "")] for n in shown]
    rest = f"\n\n{len(notes) - len(shown)} more in notes.jsonl." if len(notes) > len(shown) else ""
    return "## Warnings and events\n\n" + table(["", "step", "what"], rows, left=3) + rest


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """The first, the middle and the last."""
    if not samples:
        return ""
    chosen = sorted({0, len(samples) // 2, len(samples) - 1})[:_MAX_SAMPLES]
    parts = ["## Sample trajectories"]
    for sample in (samples[i] for i in chosen):
        facts = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in sample.items()
                          if key not in ("text", "step", "question"))  # fmt: skip
        question = f"**{sample['question']}**\n\n" if sample.get("question") else ""
        text = str(sample["text"])
        cut = text if len(text) <= _MAX_SAMPLE_TEXT else text[:_MAX_SAMPLE_TEXT] + "\n[cut]"
        fence = "`" * max(3, _longest_run(cut, "`") + 1)
        parts.append(
            f"### Step {sample.get('step', '?')}{' (' + facts + ')' if facts else ''}\n\n{question}{fence}text\n{cut}\n{fence}"
        )
    return "\n\n".join(parts)


def _longest_run(text: str, character: str) -> int:
    longest = run = 0
    for c in text:
        run = run + 1 if c == character else 0
        longest = max(longest, run)
    return longest


def _settings(run: RunFolder) -> str:
    try:
        recipe = yaml.safe_load(run.recipe_text())
    except yaml.YAMLError:
        return f"## Settings\n\n```yaml\n{run.recipe_text()}\n```"
    rows = [[f"`{key}`", value] for key, value in _flat(recipe)]
    return (
        "## Settings\n\n<details><summary>The whole recipe</summary>\n\n" + table(["key", "value"], rows, left=2) + "\n\n</details>"
    )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, "" if value is None else str(value))]


def _environment(started: Sequence[Mapping[str, Any]]) -> str:
    if not started:
        return ""
    last = started[-1]
    rows = [[key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping)
             else " ".join(map(str, value)) if isinstance(value, list) else value]
            for key, value in last.items() if value not in (None, "", []) and key != "time"]  # fmt: skip
    times = f"Started {len(started)} times; the last:\n\n" if len(started) > 1 else ""
    return "## Environment\n\n" + times + table(["", ""], rows, left=2)


# --- plots


def _plots(folder: Path, history: History, results: Mapping[str, Results]) -> str:
    if not history:
        return "No step is finished yet."
    parts = ["## Curves"]
    for name, caption, panels in _figures(history, results):
        if draw(folder / "plots" / f"{name}.png", panels) is not None:
            parts.append(f"![{name}](plots/{name}.png)\n\n{caption}")
    return "\n\n".join(parts)


def _lines(history: History, names: Mapping[str, str], **style: Any) -> list[Line]:
    """One line for each metric that some step has; `names` maps metrics to labels."""
    steps = [m["step"] for m in history]
    return [
        Line(label=label, x=steps, y=[m.get(name) for m in history], **style)
        for name, label in names.items()
        if any(m.get(name) is not None for m in history)
    ]


def _prefixed(history: History, prefix: str) -> dict[str, str]:
    found = dict.fromkeys(key for m in history for key in m if key.startswith(prefix))
    return {key: key.removeprefix(prefix).replace("_", " ") for key in found}


def _figures(history: History, results: Mapping[str, Results]) -> list[tuple[str, str, list[Panel]]]:
    """(file name, caption, panels) of every figure."""
    return [
        (
            "reward",
            "Probe lines are plain samples of the policy and the series to compare between methods. Leaves over-weight paths where the "
            "policy was unsure; the fork-weighted mean is biased too.",
            [
                Panel(title="Reward", lines=_three_means(history, "reward")),
                Panel(title="Accuracy", lines=[*_three_means(history, "accuracy"), *_validation(results)], percent=True),
            ],
        ),
        (
            "tools",
            "Inherited: calls on shared trunks, counted again for each leaf beyond the first; sharing saved these.",
            [
                Panel(title="Tool calls a step", stack=True, lines=_lines(history, {"calls/executed": "executed", "calls/inherited": "inherited"})),
                Panel(title="Tool calls asked, executed, inherited", from_zero=True, lines=_lines(history, {
                    "calls/asked": "asked", "calls/executed": "executed", "calls/inherited": "inherited", "calls/cached": "cached"})),
                Panel(title="Outcomes of tool calls", stack=True, lines=_lines(history, _prefixed(history, "outcomes/"))),
                Panel(title="Endings of branches", stack=True, lines=_lines(history, _prefixed(history, "endings/"))),
            ],
        ),
        (
            "entropy",
            "Left: mean entropy by position in the turn, first turns against turns right after a tool result, early and late in the run. "
            "Right: means over the first tokens of a turn.",
            [
                Panel(title="Entropy by position in the turn", x_label="token of the turn", y_label="nats", lines=_by_position(history), from_zero=True),
                Panel(title="Head entropy", y_label="nats", from_zero=True, lines=_lines(history, {
                    "entropy/first": "first turn", "entropy/after_tool": "after a tool result", "entropy/rise": "rise"})),
            ],
        ),
        (
            "branching",
            "A decision is refused where the budget or a root's cap is used up.",
            [
                Panel(title="Siblings wanted: granted and refused", stack=True, lines=_lines(history, {
                    "decisions/granted": "granted", "decisions/refused": "refused"})),
                Panel(title="Shares", percent=True, lines=_lines(history, {
                    "entropy/rise_positive": "tips with a rise", "decisions/waited": "decisions that waited", "decisions/flips": "would flip"})),
            ],
        ),
        (
            "tokens",
            "Shared tokens are those that further leaves did not have to sample again. Trained flat: what training every leaf alone would cost.",
            [
                Panel(title="Tokens sampled a step", stack=True, lines=_lines(history, {
                    "tokens/generated": "generated", "tokens/shared": "shared"})),
                Panel(title="Tokens through the learner", from_zero=True, lines=_lines(history, {
                    "tokens/forward_flat": "forward, flat", "tokens/forward_unique": "forward, once each",
                    "tokens/trained_flat": "trained, flat", "tokens/trained_unique": "trained, once each"})),
            ],
        ),
        (
            "health",
            "",
            [
                Panel(title="Shares", percent=True, lines=_lines(history, {
                    "rates/format": "right format", "rates/tool_use": "used a tool", "rates/mixed_groups": "mixed groups"})),
                Panel(title="Lengths", y_label="tokens", from_zero=True, lines=_lines(history, {
                    "lengths/turn": "turn", "lengths/branch": "branch", "lengths/branch_max": "longest branch"})),
            ],
        ),
        (
            "learner",
            "Ratio: new policy against the policy at the start of the step. Mismatch: learner against engine.",
            [
                *(Panel(title=title, lines=_lines(history, _prefixed(history, prefix)))
                  for prefix, title in (("ratio/", "Importance ratio"), ("mismatch/", "Mismatch between engine and learner"))),
                *(Panel(title=label.capitalize(), lines=_lines(history, {name: label}))
                  for name, label in _prefixed(history, "loss/").items()),
            ],
        ),
        (
            "seconds",
            "",
            [Panel(title="Seconds a step, by phase", y_label="seconds", stack=True,
                   lines=_lines(history, {k: v for k, v in _prefixed(history, "seconds/").items() if k != "seconds/step"}))],
        ),
    ]  # fmt: skip


def _three_means(history: History, name: str) -> list[Line]:
    return [
        *_lines(history, {f"{name}/probe_lines": "probe lines"}),
        *_lines(history, {f"{name}/leaves": "all leaves"}, light=True),
        *_lines(history, {f"{name}/fork_weighted": "fork-weighted"}, light=True, dashed=True),
    ]


def _validation(results: Mapping[str, Results]) -> list[Line]:
    found = sorted(
        (int(r.settings["step"]), r.accuracy)
        for n, r in results.items()
        if n.startswith(_VALIDATION) and r.settings.get("step") is not None
    )
    if not found:
        return []
    steps, estimates = [step for step, _ in found], [estimate for _, estimate in found]
    return [
        Line(
            label="validation",
            x=steps,
            y=[e.mean for e in estimates],
            low=[e.low for e in estimates],
            high=[e.high for e in estimates],
        )
    ]


def _by_position(history: History) -> list[Line]:
    """Mean entropy by position over the first and the last fifth of the run (at least a step each)."""
    share = max(1, len(history) // 5)
    spans = [("", history)] if len(history) < 4 else [(", early", history[:share]), (", late", history[-share:])]
    lines = []
    for kind, label, colour in (("first", "first turn", "#5c6b7a"), ("after_tool", "after a tool result", "#d1571f")):
        for suffix, span in spans:
            names = sorted({key for m in span for key in m if key.startswith(f"entropy_at/{kind}/")})
            points = [(int(n.rpartition("/")[2]), [m[n] for m in span if m.get(n) is not None]) for n in names]
            x, y = [p for p, v in points if v], [sum(v) / len(v) for _, v in points if v]
            lines.append(Line(label=label + suffix, x=x, y=y, colour=colour, light=suffix == ", early", dashed=suffix == ", early"))
    return lines
