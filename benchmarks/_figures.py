"""How every benchmark ends: figures and goals as one JSON object on the last line, and what it ran on."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arpo.runs.environment import describe_environment


@dataclass(frozen=True, slots=True)
class Goal:
    """What was to be reached, as words and a number, and what was."""

    what: str
    goal: str  # "<= 1.15"
    measured: float | None  # None: could not be measured here, `what` says why
    holds: bool


Checked = tuple[dict[str, Any], list[Goal]]
"""The figures of a check, and its goals."""


def at_most(what: str, most: float, measured: float) -> Goal:
    return Goal(what, f"<= {most:g}", measured, measured <= most)


def at_least(what: str, least: float, measured: float) -> Goal:
    return Goal(what, f">= {least:g}", measured, measured >= least)


def finish(name: str, figures: Mapping[str, Any], goals: Sequence[Goal]) -> int:
    """Print goals as lines and everything as one JSON object, last. Returns an exit code: 0 whether goals hold or not,
    since a figure that disappoints is a result, not a failure."""
    for goal in goals:
        shown = "not measured" if goal.measured is None else f"{goal.measured:.4g}"
        print(f"{'holds ' if goal.holds else 'MISSED'}  {goal.what}: {shown} (goal {goal.goal})")
    about = describe_environment(seed=0, folder=Path(__file__).parent)
    machine = {key: about[key] for key in ("cpu", "cpus", "python", "platform", "commit", "changed", "versions")}
    machine["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(json.dumps({"name": name, "figures": figures, "goals": [asdict(goal) for goal in goals], "machine": machine}))
    return 0


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
