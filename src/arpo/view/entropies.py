"""The entropy page: mean entropy by position around tool results (the paper's figure), and how well a rise predicts a
gain.

Knows the index's sums and tips. Refuses to know records.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from arpo.evaluation.statistics import wilson
from arpo.view.index import RunIndex
from arpo.view.rows import FIRST, RESULT

_Z = 1.959964  # of a 95 % interval
_BUCKETS = 8  # of the calibration, with equal numbers of pairs
_BARS = 24  # of the histogram of rises
_EDGE = 0.005  # share of tips that each of the histogram's outer bars collects

Sums = dict[int, tuple[int, float, float]]  # by position: number of values, their sum, the sum of their squares


def entropy_answer(index: RunIndex, num_windows: int) -> dict[str, Any]:
    """Entropy (api.ts). The run's steps are divided into `num_windows` windows of nearly equal size."""
    read, of = index.progress()
    steps = [step for (step,) in index.rows("SELECT DISTINCT step FROM sums ORDER BY step")]
    windows = _windows(steps, num_windows)
    tools = [tool for (tool,) in index.rows("SELECT DISTINCT tool FROM sums WHERE around = ? ORDER BY tool", (RESULT,))]
    curves = []
    for number, (first, last) in [(None, (0, 1 << 62)), *enumerate(windows)]:
        by_tool: dict[tuple[str, str], Sums] = defaultdict(dict)
        query = (
            "SELECT around, tool, position, SUM(n), SUM(total), SUM(squares) FROM sums "
            "WHERE step BETWEEN ? AND ? GROUP BY 1, 2, 3"
        )
        for around, tool, position, *values in index.rows(query, (first, last)):
            by_tool[around, tool][position] = tuple(values)  # type: ignore[assignment]
        curves += [_curve(FIRST, None, number, by_tool[FIRST, ""])]
        curves += [_curve(RESULT, None, number, _together([by_tool[RESULT, tool] for tool in tools]))]
        curves += [_curve(RESULT, tool, number, by_tool[RESULT, tool]) for tool in tools if (RESULT, tool) in by_tool]
    return {
        "indexed": {"steps": read, "of": of},
        "tools": tools,
        "windows": [{"first": first, "last": last} for first, last in windows],
        "curves": [curve for curve in curves if curve["positions"]],
        "calibration": _calibration(index),
        "rises": _histogram(index),
        "payoffs": [_payoff(index, first, last) for first, last in windows],
    }


def _windows(steps: Sequence[int], number: int) -> list[tuple[int, int]]:
    number = min(number, len(steps))
    if number < 2:
        return []
    edges = [round(k * len(steps) / number) for k in range(number + 1)]
    return [(steps[low], steps[high - 1]) for low, high in pairwise(edges)]


def _together(several: Sequence[Sums]) -> Sums:
    found: Sums = {}
    for sums in several:
        for position, (n, total, squares) in sums.items():
            old = found.get(position, (0, 0.0, 0.0))
            found[position] = (old[0] + n, old[1] + total, old[2] + squares)
    return found


def _curve(around: str, tool: str | None, window: int | None, sums: Sums) -> dict[str, Any]:
    """Means with their normal 95 % interval over tokens. The interval of a position with one value is that value."""
    positions = sorted(sums)
    n = [sums[p][0] for p in positions]
    mean = [sums[p][1] / sums[p][0] for p in positions]
    half = []
    for position, average in zip(positions, mean, strict=True):
        count, _, squares = sums[position]
        variance = max(squares - count * average * average, 0.0) / (count - 1) if count > 1 else 0.0
        half.append(_Z * math.sqrt(variance / count))
    return {
        "around": around,
        "tool": tool,
        "window": window,
        "positions": positions,
        "n": n,
        "mean": mean,
        "low": [m - h for m, h in zip(mean, half, strict=True)],
        "high": [m + h for m, h in zip(mean, half, strict=True)],
    }


def _calibration(index: RunIndex) -> list[dict[str, Any]]:
    """Forks by rise, in buckets of about equal numbers of pairs. Equal rises stay in one bucket."""
    found = index.rows("SELECT rise, better, equal, worse FROM tips WHERE better + equal + worse > 0 ORDER BY rise")
    pairs = sum(sum(counts) for _, *counts in found)
    buckets: list[dict[str, Any]] = []
    taken = 0
    for number, (rise, better, equal, worse) in enumerate(found):
        full = buckets and taken >= len(buckets) * pairs / _BUCKETS and rise > found[number - 1][0]
        if not buckets or full:
            buckets.append({"low": rise, "high": rise, "n": 0, "better": 0, "equal": 0, "worse": 0})
        bucket = buckets[-1]
        bucket["high"] = rise
        for name, count in (("n", better + equal + worse), ("better", better), ("equal", equal), ("worse", worse)):
            bucket[name] += count
        taken += better + equal + worse
    for bucket, after in pairwise(buckets):
        bucket["high"] = after["low"]
    return [bucket | _share(bucket["better"], bucket["n"]) for bucket in buckets]


def _payoff(index: RunIndex, first: int, last: int) -> dict[str, Any]:
    """Compares the siblings of these steps with their probes."""
    query = "SELECT TOTAL(better), TOTAL(equal), TOTAL(worse) FROM tips WHERE step BETWEEN ? AND ?"
    ((better, equal, worse),) = index.rows(query, (first, last))
    counts = {"better": int(better), "equal": int(equal), "worse": int(worse)}
    n = sum(counts.values())
    return {"first": first, "last": last, "n": n, **counts, **_share(counts["better"], n)}


def _share(better: int, n: int) -> dict[str, float | None]:
    if not n:
        return dict.fromkeys(("share", "share_low", "share_high"))
    share = wilson(better, n)
    return {"share": share.mean, "share_low": share.low, "share_high": share.high}


def _histogram(index: RunIndex) -> list[dict[str, Any]]:
    tips = index.rows("SELECT rise, wanted > 0, granted FROM tips ORDER BY rise")
    if not tips:
        return []
    low, high = tips[int(_EDGE * len(tips))][0], tips[-1 - int(_EDGE * len(tips))][0]
    width = (high - low) / _BARS or 1.0
    first = math.floor(low / width)  # 0 is an edge, so that no bar mixes rises and falls
    last = max(first, math.ceil(high / width) - 1)
    bars = [
        {"low": k * width, "high": (k + 1) * width, "tips": 0, "wanted": 0, "granted": 0}
        for k in range(first, last + 1)
    ]
    for rise, wanted, granted in tips:
        bar = bars[min(max(math.floor(rise / width), first), last) - first]
        bar["tips"] += 1
        bar["wanted"] += wanted
        bar["granted"] += granted > 0
    return bars
