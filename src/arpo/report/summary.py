"""The table that a run ends with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from arpo.display.progress import duration
from arpo.evaluation.statistics import Estimate


def print_closing(console: Console, summary: Mapping[str, Any], report: Path) -> None:
    """Before and after, what it cost, and where the report is."""
    if "accuracy_before" in summary or "greedy_before" in summary:
        console.print(_accuracies(summary))
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
            f"The gain cannot be told from chance: this machine had the time for {summary['steps']} steps and "
            f"{questions} questions. With more time (train.minutes) it does more.",
            highlight=False,
        )
    console.print(f"report: {report}", highlight=False, markup=False)


def _accuracies(summary: Mapping[str, Any]) -> Table:
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
