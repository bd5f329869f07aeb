"""How well an agent uses its tools, from its recorded trajectories, so that two agents can be compared as a
practitioner would.

    valid         calls that could be run (well-formed, a tool that is there, arguments that fit)
    succeeded     of those that ran, how many came back without an error
    right tool    calls of a tool that the task expects; right arguments: calls that are one of those it expects
    expected      of the calls that the task expects, how many were made
    repeated      the same tool with the same arguments as before;  redundant: other arguments, but no new line
    after known   calls made although a gold stood in a result;  missed: a gold stood in a result, the answer is wrong
    recovered     of the trajectories in which a call failed, those in which a later one succeeded

A task says what it expects in its metadata: `calls: [{name, arguments}]`. Every share is over its own unit, with a
bootstrap interval over questions. Knows records. Refuses to know models.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arpo.answer_text import CLOSED, contains, tokens
from arpo.core.tree import Branch, Call, CallStatus, ToolCallResult, on_probe_line
from arpo.evaluation.statistics import Estimate
from arpo.evaluation.trajectories import Recorded, add, ratio, share
from arpo.rollout.driver import NOT_RUN
from arpo.tasks.rows import without_nulls

FIGURES: Mapping[str, str] = {
    "valid": "calls that could be run",
    "succeeded": "of those that ran, without an error",
    "right_tool": "calls of an expected tool",
    "right_arguments": "calls that were expected",
    "expected": "of the expected calls, made",
    "repeated": "calls made before",
    "redundant": "results without a new line",
    "after_known": "calls after the answer was known",
    "missed": "known, yet the answer is wrong",
    "recovered": "trajectories that recovered from a failed call",
    "beyond_limit": "calls beyond the limit",
}
OF_SOME = ("missed", "recovered")  # of trajectories that may be few
FAILED = (CallStatus.ERROR, CallStatus.TIMEOUT, CallStatus.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """`figures` by the names in FIGURES, each from 0 to 1; those about which nothing is known are left out."""

    trajectories: int
    calls: int
    calls_each: Estimate  # a trajectory
    figures: Mapping[str, Estimate]
    by_tool: Mapping[str, Mapping[str, Estimate]]  # valid, succeeded, repeated


@dataclass(frozen=True, slots=True)
class _Made:
    call: Call
    outcome: ToolCallResult | None  # None: it was never run, since the branch ended with it

    @property
    def in_limit(self) -> bool:
        return self.outcome is not None and self.outcome.text != NOT_RUN

    @property
    def failed(self) -> bool:
        return self.outcome is not None and self.in_limit and self.outcome.status in FAILED

    @property
    def key(self) -> str:
        return _key(self.call.name, self.call.arguments)


def quality(recorded: Iterable[Recorded]) -> Quality:
    """Measure the trajectories without a sibling (that no infrastructure failure ended), so that the figures are the
    policy's under any branching rule."""
    figures: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    tools: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    each_calls: dict[str, tuple[float, float]] = {}
    trajectories = calls = 0
    for each in recorded:
        tree = each.record.tree
        for branch in (b for b in tree.branches() if on_probe_line(tree, b.leaf) and not b.ending.aborted):
            made = list(_made(branch))
            trajectories, calls = trajectories + 1, calls + len(made)
            add(each_calls, each.question, len(made), 1)
            score = each.record.scores.get(branch.leaf)
            right = None if score is None else score.accuracy >= 0.5
            for name, up, down in _counts(made, each.task, right):
                add(figures[name], each.question, up, down)
            for name, tool, up in _tool_counts(made):
                add(tools[tool, name], each.question, up, 1)
    by_tool: dict[str, dict[str, Estimate]] = defaultdict(dict)
    for (tool, name), pairs in sorted(tools.items()):
        by_tool[tool][name] = share(pairs, purpose=f"{tool}/{name}")
    told = {name: share(figures[name], purpose=name) for name in FIGURES if name in figures}
    return Quality(
        trajectories=trajectories,
        calls=calls,
        calls_each=ratio(each_calls, purpose="calls"),
        figures={name: estimate for name, estimate in told.items() if estimate.n},
        by_tool=dict(by_tool),
    )


def _made(branch: Branch) -> Iterator[_Made]:
    outcomes = {observation.place: observation.outcomes for observation in branch.observations}
    for turn in branch.turns:
        told: Sequence[ToolCallResult | None] = outcomes.get(turn.place, ())
        told = [*told, *[None] * (len(turn.calls) - len(told))]
        yield from (_Made(call, outcome) for call, outcome in zip(turn.calls, told, strict=False))


def _counts(made: Sequence[_Made], task: Mapping[str, Any], right: bool | None) -> Iterator[tuple[str, float, float]]:
    """(figure, numerator, denominator) of one trajectory."""
    ran = [each for each in made if each.in_limit]
    yield "beyond_limit", len(made) - len(ran), len(made)
    valid = [each for each in ran if each.outcome is not None and each.outcome.status is not CallStatus.REFUSED]
    yield "valid", len(valid), len(ran)
    yield "succeeded", sum(not each.failed for each in valid), len(valid)
    yield "repeated", len(ran) - len({each.key for each in ran}), len(ran)
    yield from _redundant(valid)
    yield from _expected(ran, task.get("calls"))
    yield from _known(ran, [str(gold) for gold in task.get("answers", ())], right)
    failures = [at for at, each in enumerate(ran) if each.failed]
    if failures:
        later = ran[failures[0] + 1 :]
        yield "recovered", float(any(not each.failed for each in later)), 1


def _redundant(valid: Sequence[_Made]) -> Iterator[tuple[str, float, float]]:
    seen: set[str] = set()
    keys: set[str] = set()
    for each in valid:
        assert each.outcome is not None
        lines = {line.strip() for line in each.outcome.text.splitlines() if line.strip()}
        if each.outcome.status is CallStatus.OK and each.key not in keys:
            yield "redundant", float(bool(lines) and lines <= seen), 1
        seen |= lines
        keys.add(each.key)


def _expected(ran: Sequence[_Made], expected: object) -> Iterator[tuple[str, float, float]]:
    if not isinstance(expected, Sequence) or not expected:
        return
    expected_keys = {_key(str(call["name"]), call.get("arguments", {})) for call in expected}
    names = {str(call["name"]) for call in expected}
    keys = [each.key for each in ran]
    yield "right_tool", sum(each.call.name in names for each in ran), len(ran)
    yield "right_arguments", sum(key in expected_keys for key in keys), len(keys)
    yield "expected", len(expected_keys & set(keys)), len(expected_keys)


def _known(ran: Sequence[_Made], golds: Sequence[str], right: bool | None) -> Iterator[tuple[str, float, float]]:
    """Only golds that cannot stand in a result by chance: not yes and no, no single characters and digits."""
    telling = [gold for gold in golds if len(gold.strip()) >= 3 and tokens(gold) and tokens(gold)[0] not in CLOSED]
    if not telling or not ran:
        return
    known = [
        each.outcome is not None
        and each.outcome.status is CallStatus.OK
        and any(contains(each.outcome.text, gold) for gold in telling)
        for each in ran
    ]
    first = known.index(True) if any(known) else len(ran)
    yield "after_known", len(ran) - first - 1 if any(known) else 0, len(ran)
    if any(known) and right is not None:
        yield "missed", float(not right), 1


def _tool_counts(made: Sequence[_Made]) -> Iterator[tuple[str, str, float]]:
    seen: set[str] = set()
    for each in (each for each in made if each.in_limit):
        assert each.outcome is not None
        tool, valid = each.call.name or "(none)", each.outcome.status is not CallStatus.REFUSED
        yield "valid", tool, float(valid)
        yield "repeated", tool, float(each.key in seen)
        if valid:
            yield "succeeded", tool, float(not each.failed)
        seen.add(each.key)


def _key(name: str, arguments: Mapping[str, object]) -> str:
    """A call in the form that makes equal calls equal: case, blanks and the order of keys do not count in texts, nor do
    nulls."""
    plain = {
        key: " ".join(value.split()).casefold() if isinstance(value, str) else value
        for key, value in without_nulls(arguments).items()
    }
    return json.dumps([name, plain], sort_keys=True, ensure_ascii=False, default=str)


def as_study(by_model: Mapping[str, Quality]) -> dict[str, Any]:
    """One agent or several side by side as results.json keeps them, with tables for reports."""
    names = list(by_model)
    rows = [["trajectories", *(f"{q.trajectories:,}" for q in by_model.values())]]
    rows += [["calls a trajectory", *(_plain(q.calls_each) for q in by_model.values())]]
    for name, says in FIGURES.items():
        if any(name in q.figures for q in by_model.values()):
            rows.append(
                [says, *(_shown(name, q.figures[name]) if name in q.figures else "-" for q in by_model.values())]
            )
    tables = [
        {"title": "Tool-call quality", "head": ["", *names], "rows": rows, "note": "95 % intervals over questions."}
    ]
    by_tool = [
        [
            tool,
            *([name] if len(names) > 1 else []),
            *(told[f].percent if f in told else "-" for f in ("valid", "succeeded", "repeated")),
        ]
        for name, q in by_model.items()
        for tool, told in sorted(q.by_tool.items())
    ]
    if by_tool:
        head = ["tool", *(["agent"] if len(names) > 1 else []), "valid", "succeeded", "repeated"]
        tables.append({"title": "Calls by tool", "head": head, "rows": by_tool, "note": ""})
    return {"tables": tables, "agents": {name: asdict(q) for name, q in by_model.items()}}


def _shown(name: str, estimate: Estimate) -> str:
    return f"{estimate.percent} of {estimate.n:,}" if name in OF_SOME else estimate.percent


def _plain(estimate: Estimate) -> str:
    return re.sub(r"(\.\d\d)\d", r"\1", str(estimate))
