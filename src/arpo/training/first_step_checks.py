"""Gates of the first step and a warning later: is there anything to learn, and does the policy still use tools?

Knows metrics by name (arpo.training.metrics). Refuses to know trees and files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arpo.recipe.train import GATES, GateName

History = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition: `measured` (NaN where the step had nothing to measure it on) must reach `goal`."""

    what: str
    goal: float
    measured: float
    holds: bool

    def __str__(self) -> str:
        sign = ">=" if self.holds else "<"
        measured = "not measured" if math.isnan(self.measured) else f"{self.measured:.2f} {sign} {self.goal:.2f}"
        return f"{'holds' if self.holds else 'FAILS'}: {self.what} ({measured})"


_GATES: tuple[tuple[GateName, str, str], ...] = (
    ("format", "rates/format", "leaves in the right format"),
    ("tool_use", "rates/tool_use", "leaves that used a tool"),
    ("mixed_groups", "rates/mixed_groups", "groups with mixed rewards"),
    ("rise_positive", "entropy/rise_positive", "tips where entropy rose after a tool result"),
)

FORMAT_AND_TOOLS = frozenset(what for name, _, what in _GATES if name in ("format", "tool_use"))
"""The gates of what a cold start teaches."""


def check_first_step(
    metrics: Mapping[str, float | None], thresholds: Mapping[GateName, float] | None = None
) -> list[Gate]:
    """The gates of one step's metrics; one that was not measured does not hold."""
    goals = GATES | dict(thresholds or {})
    gates = []
    for name, key, what in _GATES:
        value = metrics.get(key)
        measured = math.nan if value is None else float(value)
        gates.append(Gate(what, goals[name], measured, measured >= goals[name]))
    return gates


def tool_use_collapse(history: History, *, window: int = 3, share: float = 0.6) -> str | None:
    """A warning when the last `window` steps use tools less than `share` times as often as the first `window` steps,
    else None.

    A policy learns to answer at once, without tools, where calls are broken or cost more than they bring.
    """
    rates = [float(rate) for metrics in history if (rate := metrics.get("rates/tool_use")) is not None]
    if len(rates) < 2 * window:
        return None
    before, now = sum(rates[:window]) / window, sum(rates[-window:]) / window
    if now >= share * before:
        return None
    return (
        f"tool use collapsed: {now:.0%} of the last {window} steps' leaves ran a tool, {before:.0%} at the start. "
        "Look at transcripts: do calls still run, and does a wrong answer without tools score better than a failed try?"
    )
