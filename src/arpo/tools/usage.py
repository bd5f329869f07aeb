"""Usage of tools: counts, faults, seconds and money of a run's calls, by tool, and the file that keeps them.

Knows results of calls. Refuses to know trees: `arpo.training.metrics` counts what branches share.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil, exp, log
from pathlib import Path
from typing import Any

from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import FormatError
from arpo.files import read_json, write_json
from arpo.foreign import check_values

BUCKETS_PER_E = 12  # of the histogram of seconds: a percentile is right to 4 %
SHORTEST_S = 1e-6
FILE = "calls.json"
COUNTS = ("asked", "executed", "attempts", "cached", "shared", "refused", "unavailable", "cost")
_KINDS = {**dict.fromkeys(COUNTS, float), **dict.fromkeys(("faults", "seconds"), Mapping[str, int])}
UNKNOWN = "(no such tool)"  # usage of tools that do not exist: models make up many names
EVERY_S = 1.0  # between two writes while calls are made; usage that costs money is written at once


@dataclass(slots=True)
class ToolUsage:
    """Usage of one tool. `seconds`: how many executed calls fell into each bucket of time."""

    asked: int = 0
    executed: int = 0
    attempts: int = 0  # paid before each: more than executed where a provider failed in between
    cached: int = 0
    shared: int = 0
    refused: int = 0
    unavailable: int = 0
    cost: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: Counter[int] = field(default_factory=Counter)
    last_faults: deque[str] = field(default_factory=lambda: deque(maxlen=5))

    def add_executed(self, outcome: ToolCallResult) -> None:
        """Count a call that was executed, whether or not somebody still waits for it."""
        if outcome.ran:
            self.executed += 1
            self.cost += outcome.cost
            self.seconds[_bucket(outcome.seconds)] += 1

    def add_answered(self, outcome: ToolCallResult) -> None:
        """Count a call that was answered."""
        self.asked += 1
        self.cached += outcome.cached and outcome.answered  # a refusal counts as refused alone, also from the cache
        self.shared += outcome.shared and outcome.answered
        self.refused += outcome.status is CallStatus.REFUSED
        self.unavailable += outcome.status is CallStatus.UNAVAILABLE
        if outcome.fault and not outcome.cached:
            self.faults[outcome.fault] += 1
            self.last_faults.append(f"{outcome.fault}: {outcome.text}")

    def percentile(self, share: float) -> float | None:
        """Seconds that `share` of the executed calls took at most; None where none was executed."""
        left = ceil(share * self.seconds.total())
        for bucket in sorted(self.seconds):
            left -= self.seconds[bucket]
            if left <= 0:
                return SHORTEST_S * exp(bucket / BUCKETS_PER_E)
        return None

    def as_json(self) -> dict[str, Any]:
        """As JSON values, which `merge` reads."""
        values = {name: getattr(self, name) for name in COUNTS}
        values |= {f"p{share}_s": self.percentile(share / 100) for share in (50, 95, 99)}
        return {
            **values,
            "faults": dict(self.faults),
            "seconds": {str(bucket): n for bucket, n in sorted(self.seconds.items())},
        }

    def merge(self, values: Mapping[str, Any]) -> None:
        """Add what an earlier start of the run wrote down."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + values.get(name, 0))
        self.faults.update(values.get("faults", {}))
        self.seconds.update({int(bucket): count for bucket, count in values.get("seconds", {}).items()})


def _bucket(seconds: float) -> int:
    return max(0, ceil(BUCKETS_PER_E * log(max(seconds, SHORTEST_S) / SHORTEST_S)))


class UsageLog:
    """The file of a run's usage. A thread of its own writes it whole each time: a killed process loses at most the
    counts of its last second, and no money but that of calls in flight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="arpo-usage")
        self._lock = threading.Lock()  # around the file, and around what is still to be written
        self._next: Mapping[str, Any] | None = None
        self._at = float("-inf")

    def due(self, *, money: bool) -> bool:
        """Whether to `write_soon` now: after each call that cost `money`, else every second."""
        return money or time.monotonic() - self._at >= EVERY_S

    def write_soon(self, usage: Mapping[str, Any]) -> None:
        """Have `usage` written by the thread, unless newer usage comes first. Waits for no disk."""
        self._at = time.monotonic()
        self._next = usage
        self._writer.submit(self._write)

    def write(self, usage: Mapping[str, Any]) -> None:
        """Write `usage` now. Raises OSError."""
        with self._lock:
            self._next, self._at = None, time.monotonic()
            write_json(self.folder / FILE, usage)

    def _write(self) -> None:
        with self._lock:
            usage, self._next = self._next, None
            if usage is not None:
                write_json(self.folder / FILE, usage)  # a full disk stops the run where it next writes by `write`


def read_usage(run: Path) -> dict[str, Any]:
    """The usage in a run's folder; empty where the run has made no call. Raises FormatError."""
    path = run / FILE
    usage = read_json(path) if path.is_file() else {}
    if not isinstance(usage, dict):
        raise FormatError(f"{path}: usage is a JSON object with a key for each tool")
    for name, values in usage.items():
        check_values({"usage": values}, {"usage": Mapping[str, Any]}, f"{path}: {name}")
        check_values(values, _KINDS, f"{path}: {name}")
        if not all(bucket.isdecimal() and len(bucket) < 4 for bucket in values.get("seconds", ())):
            raise FormatError(f"{path}: {name}: seconds is not by bucket of time")
    return together([usage])


def usage_of(outcomes: Iterable[ToolCallResult], tools: Container[str]) -> dict[str, dict[str, Any]]:
    """Usage as JSON values, from the results that a run's trees hold. `tools`: the names of the run's tools."""
    usage: dict[str, ToolUsage] = {}
    for outcome in outcomes:
        made_up = outcome.status is CallStatus.REFUSED and outcome.tool not in tools
        one = usage.setdefault(UNKNOWN if made_up else outcome.tool, ToolUsage())
        one.attempts += outcome.attempts if outcome.ran or outcome.status is CallStatus.UNAVAILABLE else 0
        one.add_executed(outcome)
        one.add_answered(outcome)
    return {name: one.as_json() for name, one in sorted(usage.items())}


def together(several: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The usage of several processes, as JSON values, added up."""
    usage: dict[str, ToolUsage] = {}
    for name, values in ((name, values) for each in several for name, values in each.items()):
        usage.setdefault(name, ToolUsage()).merge(values)
    return {name: one.as_json() for name, one in sorted(usage.items())}


def in_words(usage: Mapping[str, Mapping[str, Any]]) -> str:
    """Usage of all tools together as one line of text: what was executed, and whatever else is not 0."""
    asked, executed, cached, shared = (
        sum(a[key] for a in usage.values()) for key in ("asked", "executed", "cached", "shared")
    )
    cost = sum(a["cost"] for a in usage.values())
    parts = [f"{asked:,} requested"] if asked != executed else []
    parts.append(f"{executed:,} executed")
    parts += [
        f"{count:,} {what}"
        for count, what in ((cached, "answered from the cache"), (shared, "shared with one in flight"))
        if count
    ]
    parts += [f"cost {cost:.4g}"] if cost else []
    return f"tool calls: {', '.join(parts)}"


def table(usage: Mapping[str, Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    """Header and rows of a table of usage, a tool a row."""
    header = ("tool", "asked", "executed", "cached", "shared", "refused", "failed", "median", "95 %", "99 %", "cost")
    rows = []
    for name, one in sorted(usage.items()):
        counts = [f"{one[key]:,}" for key in ("asked", "executed", "cached", "shared", "refused")]
        times = [_time(one.get(f"p{share}_s")) for share in (50, 95, 99)]
        cost = f"{one['cost']:.4g}" if one["cost"] else ""
        rows.append([name, *counts, f"{sum(one['faults'].values()):,}", *times, cost])
    return header, rows


def as_study(usage: Mapping[str, Mapping[str, Any]], isolation: Mapping[str, str]) -> dict[str, Any]:
    """Usage of an evaluation as one of its studies: JSON values, with a table for its reports."""
    header, rows = table(usage)
    note = "Of all questions together. " + " ".join(f"{name} runs code in: {kind}." for name, kind in isolation.items())
    tables = [{"title": "Tool calls", "head": list(header), "rows": rows, "note": note.strip()}]
    return {"accounts": usage, "isolation": dict(isolation), "tables": tables}


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds * 1e3:.2g} ms"
        if seconds < 0.0995
        else f"{seconds * 1e3:.0f} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )
