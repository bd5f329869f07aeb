"""The paper's observation, measured: how unsure a model is before and after each tool result (arXiv 2507.19849, section
2.3).

    first turn   |0 1 2 … k-1|                     the baseline that a branching rule uses
    a result     … -3 -2 -1 | result | 0 1 2 …     the end of the calling turn, and the head of the turn that follows

Knows recorded turns with their entropies (nats). Refuses to know models and rules. Every interval resamples questions.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arpo.core.place import Place
from arpo.core.tree import Observation, RolloutTree, Turn, on_probe_line
from arpo.display.charts import Line, Panel, draw
from arpo.errors import ConfigError
from arpo.evaluation.statistics import Estimate
from arpo.evaluation.trajectories import Recorded, add, ratio, share

ALL = "all tools"
WINDOW = 20  # tokens shown on either side of a result
CLAIM = (0.4, 0.6)  # the rise after a tool result that the paper's authors observed
WIDEST = 1.0  # nats: where an engine's interval is wider, it does not know its entropies
TITLE = "Entropy around tool results"

_Sums = dict[str, tuple[float, float]]  # by question


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEntropies:
    """Around the results of one tool (or of all). Entropies in nats a token, rises as shares (0.5: half as much
    again)."""

    tool: str
    results: int
    first: Estimate  # head of the first turns of the same trajectories
    before: Estimate  # the last tokens of the turns that called
    after: Estimate  # head of the turns that follow
    rise: Estimate  # after against the first turn: what a branching rule looks at
    rise_from_before: Estimate  # after against the tokens right before the result
    rose: Estimate  # share of results after which the head entropy lies above the first turn's
    positions: tuple[int, ...]  # -1: the last token before the result, 0: the first one after it
    curve: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyStudy:
    head: int  # k
    trees: int
    tools: tuple[ToolEntropies, ...]  # all of them together first, then by name
    by_number: tuple[tuple[int, Estimate], ...]  # rise after the first, second, ... result
    first_curve: tuple[Estimate, ...]  # by position in the first turn

    @property
    def all(self) -> ToolEntropies:
        return self.tools[0]

    @property
    def claim(self) -> str:
        """What the measured rise says about the claim of 40 to 60 %."""
        rise, (low, high) = self.all.rise, CLAIM
        text = f"claimed: +40 % to +60 % on average; measured: {percent(rise)} after {self.all.results:,} results"
        if math.isnan(rise.low):
            return f"{text}: too few questions to say more"
        if rise.high < low or rise.low > high:
            return f"{text}: the claim does not hold here"
        inside = low <= rise.low and rise.high <= high
        return f"{text}: {'the claim holds here' if inside else 'the interval reaches into the claim and beyond it'}"


class _Collected:
    """Sums of one tool, by question."""

    def __init__(self) -> None:
        self.results = 0
        self.first: _Sums = {}
        self.before: _Sums = {}
        self.after: _Sums = {}
        self.rise: _Sums = {}
        self.rise_from_before: _Sums = {}
        self.rose: _Sums = {}
        self.curve: dict[int, _Sums] = defaultdict(dict)

    def take(self, question: str, first: float, caller: Turn, follows: Turn, head: int) -> None:
        last, now = caller.entropies[-head:], follows.entropies[:head]
        before, after = sum(last) / len(last), sum(now) / len(now)
        self.results += 1
        for sums, up, down in (
            (self.first, first, 1.0),
            (self.before, before, 1.0),
            (self.after, after, 1.0),
            (self.rise, after, first),
            (self.rise_from_before, after, before),
            (self.rose, float(after > first), 1.0),
        ):
            add(sums, question, up, down)
        for at, value in enumerate(reversed(caller.entropies[-WINDOW:]), 1):
            add(self.curve[-at], question, value, 1.0)
        for at, value in enumerate(follows.entropies[:WINDOW]):
            add(self.curve[at], question, value, 1.0)

    def told(self, tool: str) -> ToolEntropies:
        def of(name: str, change: bool = False) -> Estimate:
            return ratio(getattr(self, name), purpose=f"{tool}/{name}", change=change)

        positions = tuple(sorted(self.curve))
        return ToolEntropies(
            tool=tool,
            results=self.results,
            first=of("first"),
            before=of("before"),
            after=of("after"),
            rise=of("rise", change=True),
            rise_from_before=of("rise_from_before", change=True),
            rose=share(self.rose, purpose=f"{tool}/rose"),
            positions=positions,
            curve=tuple(ratio(self.curve[at], purpose=f"{tool}/{at}") for at in positions),
        )


def entropy_study(recorded: Iterable[Recorded]) -> EntropyStudy:
    """Measure what stands in `recorded`, on lines without a sibling alone, so that the figures are the policy's under
    any branching rule.

    k is the head of the first record. Raises ConfigError where there is no tool result with a turn after it, or the
    engine that wrote the turns did not know its entropies (an endpoint tells none).
    """
    by_tool: dict[str, _Collected] = defaultdict(_Collected)
    by_number: dict[int, _Sums] = defaultdict(dict)
    first_curve: dict[int, _Sums] = defaultdict(dict)
    trees = unknown = 0
    k: int | None = None
    for each in recorded:
        tree, trees = each.record.tree, trees + 1
        k = k or each.record.config.head
        for turn in (turn for place, turn in sorted(tree.turns.items()) if _is_first(tree, place) and _known(turn)):
            for at, value in enumerate(turn.entropies[:WINDOW]):
                add(first_curve[at], each.question, value, 1.0)
        for observation, caller, follows in _results(tree):
            first = tree.turns[caller.place[:1]]
            if not (_known(caller) and _known(follows) and _known(first)):
                unknown += 1
                continue
            base = sum(first.entropies[:k]) / min(k, len(first.entropies))
            by_tool[ALL].take(each.question, base, caller, follows, k)
            by_tool[_tool(observation)].take(each.question, base, caller, follows, k)
            now = follows.entropies[:k]
            add(by_number[len(caller.place)], each.question, sum(now) / len(now), base)
    if ALL not in by_tool or k is None:
        why = (
            "the engine that wrote these turns tells no entropies (`local` does)"
            if unknown
            else "no tool result was followed by a turn"
        )
        raise ConfigError(f"there is nothing to measure in {trees:,} trees: {why}", where="--entropy")
    return EntropyStudy(
        head=k,
        trees=trees,
        tools=tuple(by_tool[tool].told(tool) for tool in [ALL, *sorted(by_tool.keys() - {ALL})]),
        by_number=tuple((n, ratio(by_number[n], purpose=f"result {n}", change=True)) for n in sorted(by_number)),
        first_curve=tuple(ratio(first_curve[at], purpose=f"first/{at}") for at in sorted(first_curve)),
    )


def _results(tree: RolloutTree) -> Iterable[tuple[Observation, Turn, Turn]]:
    for place, observation in sorted(tree.observations.items()):  # not in the order in which they arrived
        for child in (child for child in tree.children(place) if on_probe_line(tree, child)):
            if tree.turns[place].entropies and tree.turns[child].entropies:
                yield observation, tree.turns[place], tree.turns[child]


def _is_first(tree: RolloutTree, place: Place) -> bool:
    return len(place) == 1 and on_probe_line(tree, place)


def _known(turn: Turn) -> bool:
    if turn.bounds is None or not turn.entropies:
        return True
    low, high = turn.bounds
    return (sum(high) - sum(low)) / len(high) <= WIDEST


def _tool(observation: Observation) -> str:
    names = sorted({outcome.tool for outcome in observation.outcomes})
    return " + ".join(names) or "(none)"


def percent(estimate: Estimate) -> str:
    """`+52 % [+44 %, +61 %]`."""
    if math.isnan(estimate.mean):
        return "-"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:+.0%}, {estimate.high:+.0%}]"
    return f"{estimate.mean:+.0%}{interval}".replace("%", " %")


def as_study(study: EntropyStudy) -> dict[str, Any]:
    """As results.json keeps it, with tables for reports."""
    rows = [
        [
            t.tool,
            f"{t.results:,}",
            str(t.first),
            str(t.before),
            str(t.after),
            percent(t.rise),
            percent(t.rise_from_before),
            t.rose.percent,
        ]
        for t in study.tools
    ]
    columns = ["", "results", "first turn", "before", "after", "rise over first turn", "rise over before", "rose"]
    note = f"Nats a token; heads of {study.head} tokens; 95 % intervals over questions. {study.claim}."
    numbers = [[str(number), percent(rise), str(rise.n)] for number, rise in study.by_number]
    return {
        "tables": [
            {"title": TITLE, "head": columns, "rows": rows, "note": note},
            {
                "title": "Rise by number of the result",
                "head": ["result", "rise over first turn", "questions"],
                "rows": numbers,
            },
        ],
        "claim": study.claim,
        **asdict(study),
    }


def draw_entropy(path: Path, study: EntropyStudy, *, name: str = "") -> Path | None:
    """The curves around a result as a PNG: all tools, each tool, and the first turn beside them."""
    tools = study.tools if len(study.tools) > 2 else study.tools[:1]
    lines = [_line(each.tool, each.positions, each.curve) for each in tools]
    start = Line(
        label="first turn",
        x=range(len(study.first_curve)),
        y=[e.mean if e.n > 1 else None for e in study.first_curve],
        dashed=True,
        light=True,
    )
    title = f"{TITLE}{': ' + name if name else ''}"
    around = Panel(
        title=title,
        lines=[*lines, start],
        x_label="token (0: the first after the result)",
        y_label="nats",
        from_zero=True,
    )
    numbers = [number for number, _ in study.by_number]
    rises = _line("rise", numbers, [rise for _, rise in study.by_number])
    notes = [(CLAIM[0], "claimed +40 %"), (CLAIM[1], "claimed +60 %")]
    by_number = Panel(
        title="Rise over the first turn",
        lines=[rises],
        x_label="number of the result",
        percent=False,
        y_label="share",
        notes=notes,
    )
    return draw(path, [around, by_number] if len(numbers) > 1 else [around])


def _line(label: str, x: Sequence[int], estimates: Sequence[Estimate]) -> Line:
    """A single question has no interval and is no curve."""
    y = [e.mean if e.n > 1 else None for e in estimates]
    return Line(label=label, x=x, y=y, low=[e.low for e in estimates], high=[e.high for e in estimates])
