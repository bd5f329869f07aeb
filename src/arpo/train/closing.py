"""The table that a run ends with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from arpo.evaluation.metrics import Estimate
from arpo.train.progress import duration


def print_closing(console: Console, summary: Mapping[str, Any], report: Path) -> None:
    """Before and after, what it cost, and where the report is."""
    if "accuracy_before" in summary or "greedy_before" in summary:
        console.print(_accuracies(summary))
    seconds = sum(summary.get("seconds", {}).values())
    console.print(
        f"{summary['steps']} steps, {summary['tool_calls']:,.0f} tool calls, {summary['tokens_generated']:,.0f} tokens generated, "
        f"{summary['tokens_trained']:,.0f} trained, {duration(seconds)} in all",
        highlight=False,
    )
    console.print(f"report: {report}", highlight=False, markup=False)


def _accuracies(summary: Mapping[str, Any]) -> Table:
    table = Table(title="accuracy on held-out questions, 95 % intervals")
    for name in ("", "before", "after", "gain (paired)", "questions"):
        table.add_column(name, justify="left" if not name else "right")
    for label, key in (("sampled", "accuracy"), ("greedy", "greedy")):
        found = {when: summary.get(f"{key}_{when}") for when in ("before", "after", "gain")}
        if found["before"] or found["after"]:
            shown = [Estimate.of(value).percent if value else "-" for value in found.values()]
            table.add_row(label, *shown, str((found["after"] or found["before"])["n"]))
    return table
