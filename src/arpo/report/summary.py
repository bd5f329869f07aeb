"""What a run's summary says of its accuracy, and the table that a run ends with."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from arpo.display.progress import duration
from arpo.display.terminal import Console
from arpo.evaluation.results import EvalResults
from arpo.evaluation.statistics import Estimate, paired_difference


def accuracies(before: dict[str, EvalResults], after: dict[str, EvalResults]) -> dict[str, Any]:
    """`accuracy_before`, `accuracy_after` and the paired `accuracy_gain`, likewise `greedy_...`, and by family
    `families_before` and `families_after` (of sampled answers), as far as they were measured."""
    facts: dict[str, Any] = {}
    for when, results in (("before", before.get("before")), ("after", after.get("after"))):
        if results:
            families = sorted(results.benchmarks[0].by_family.items())
            facts[f"families_{when}"] = {family: asdict(accuracy) for family, accuracy in families}
    for key, suffix in (("accuracy", ""), ("greedy", "-greedy")):
        first, last = before.get(f"before{suffix}"), after.get(f"after{suffix}")
        facts |= {f"{key}_{when}": asdict(r.accuracy) for when, r in (("before", first), ("after", last)) if r}
        if first and last:
            paired = paired_difference(first.by_question, last.by_question)
            facts[f"{key}_gain"] = {**asdict(paired.difference), "p_value": paired.p_value}
    return facts


def print_closing(console: Console, summary: Mapping[str, Any], report: Path) -> None:
    """Before and after, what it cost, and where the report is."""
    if "accuracy_before" in summary or "greedy_before" in summary:
        console.print(_table(summary))
    seconds = sum(summary.get("seconds", {}).values())
    console.print(
        f"{summary['steps']} steps, {summary['tool_calls']:,.0f} tool calls, {summary['tokens_generated']:,.0f} "
        f"tokens generated, {summary['tokens_trained']:,.0f} trained, {duration(seconds)} in all",
        highlight=False,
    )
    gain = summary.get("accuracy_gain")
    if summary.get("planned") and gain and gain["low"] <= 0:
        questions = summary["accuracy_after"]["n"]
        console.print(
            f"The gain cannot be told from chance after {summary['steps']} steps and {questions} questions. More of "
            "them (train.steps, evaluation.limit) take a slow machine more time (train.minutes).",
            highlight=False,
        )
    console.print(f"report: {report}")


def _table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="accuracy on held-out questions, 95 % intervals", title_justify="left")
    table.add_column("")
    asked = [key for key in ("accuracy", "greedy") if f"{key}_before" in summary or f"{key}_after" in summary]
    for key in asked:
        table.add_column("sampled" if key == "accuracy" else key, justify="right", no_wrap=True)
    for label, when in (("before", "before"), ("after", "after"), ("gain (paired)", "gain")):
        found = [summary.get(f"{key}_{when}") for key in asked]
        table.add_row(label, *(Estimate.from_json(value).percent if value else "-" for value in found))
    table.add_row("questions", *(str((summary.get(f"{key}_after") or summary[f"{key}_before"])["n"]) for key in asked))
    return table
