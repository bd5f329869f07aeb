"""Turns one record into the values of the index: a row of the table of trees, sums of entropies by position, and its
tips.

Pure functions of a record. Refuses to know where records lie and where rows go.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arpo.core.events import Returned
from arpo.core.place import Place
from arpo.core.record import TreeRecord
from arpo.core.tree import ToolCallResult, on_probe_line
from arpo.view.forks import fork_at, forks, helped

MOST_QUESTION = 300  # characters of a question in a table
BEFORE, AFTER = 10, 20  # tokens before and after a result whose entropies are averaged by position
RESULT, FIRST = "result", "first"  # the origin of positions

SumKey = tuple[str, str, int]  # around, tool ("" for first turns), position
Sums = dict[SumKey, tuple[int, float, float]]  # number of values, their sum, the sum of their squares


@dataclass(frozen=True, slots=True)
class TipRow:
    rise: float
    wanted: int
    granted: int
    better: int
    equal: int
    worse: int


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """The values of a record. `row` has the fields of TreeRow in api.ts, except `step`."""

    row: dict[str, Any]
    sums: Sums
    tips: list[TipRow]


def facts_of(record: TreeRecord) -> TreeFacts:
    return TreeFacts(_row(record), _sums(record), _tips(record))


def discarded(record: TreeRecord) -> dict[Place, Sequence[ToolCallResult]]:
    """The results that the model never saw, because the branch ended with them, by leaf."""
    ended = (event for event in record.events if isinstance(event, Returned) and event.ending is not None)
    return {event.observation.place: event.observation.outcomes for event in ended}


def text_note(record: TreeRecord, name: str) -> str:
    """A text of `notes["task"]`; "" if it is missing or not a text."""
    task = record.notes.get("task")
    value = task.get(name, "") if isinstance(task, dict) else ""
    return value if isinstance(value, str) else ""


def _row(record: TreeRecord) -> dict[str, Any]:
    tree = record.tree
    shown = [outcome for seen in tree.observations.values() for outcome in seen.outcomes]
    outcomes = [*shown, *(outcome for made in discarded(record).values() for outcome in made)]
    rewards = [score.reward for score in record.scores.values()]
    made = [decision.decided for decision in record.decisions.values()]
    return {
        "task": tree.task,
        "family": text_note(record, "family"),
        "question": text_note(record, "question")[:MOST_QUESTION],
        "leaves": len(tree.endings),
        "reward_mean": math.fsum(rewards) / len(rewards) if rewards else None,
        "reward_max": max(rewards, default=None),
        "reward_min": min(rewards, default=None),
        "tools": sorted({outcome.tool for outcome in outcomes}),
        "calls": len(outcomes),
        "errors": sum(outcome.status != "ok" for outcome in outcomes),
        "statuses": sorted({outcome.status.value for outcome in outcomes} - {"ok"}),
        "endings": dict(Counter(ending.value for ending in tree.endings.values())),
        "branches": sum(decided.granted for decided in made),
        "refused": sum(max(decided.decision.wanted - decided.granted, 0) for decided in made),
        "helped": helped(forks(record)),
        "tokens": sum(len(turn.tokens) for turn in tree.turns.values()),
        "trained": bool(record.advantages),
    }


def _tips(record: TreeRecord) -> list[TipRow]:
    rows = []
    for place, made in record.decisions.items():
        if made.tip is not None:
            better, equal, worse = fork_at(record, place).compared
            rows.append(TipRow(made.tip.rise, made.decided.decision.wanted, made.decided.granted, better, equal, worse))
    return rows


def _sums(record: TreeRecord) -> Sums:
    """Sums over the first turns of planned roots, the turns before a result, and the turns after it: on lines without a
    sibling alone, as the run's metrics have them, since siblings start where the policy was uncertain."""
    sums: Sums = {}
    tree = record.tree
    for place, turn in tree.turns.items():
        if not on_probe_line(tree, place):
            continue
        if len(place) == 1:
            _add(sums, FIRST, "", 0, turn.entropies[:AFTER])
        else:
            _add(sums, RESULT, _tool_at(record, place[:-1]), 0, turn.entropies[:AFTER])
        if place in tree.observations:
            last = turn.entropies[-BEFORE:]
            _add(sums, RESULT, _tool_at(record, place), -len(last), last)
    return sums


def _tool_at(record: TreeRecord, place: Place) -> str:
    """The tool of a result. Of several calls in one turn it is the last one, whose text is nearest to the next turn."""
    outcomes = record.tree.observations[place].outcomes
    return outcomes[-1].tool if outcomes else ""


def _add(sums: Sums, around: str, tool: str, start: int, entropies: Sequence[float]) -> None:
    for position, entropy in enumerate(entropies, start):
        n, total, squares = sums.get((around, tool, position), (0, 0.0, 0.0))
        sums[around, tool, position] = (n + 1, total + entropy, squares + entropy * entropy)
