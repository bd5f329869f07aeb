"""Turns one record into the JSON that draws a tree (Tree) and colours its text (Tokens): see api.ts.

Pure functions of a record and a tokenizer. Refuses to know files, requests and pixels.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Protocol

from arpo.core.entropy import head_entropy
from arpo.core.expansion import TipDecision
from arpo.core.place import Place, read_place, show
from arpo.core.record import TreeRecord
from arpo.core.roots import Pilot
from arpo.core.tree import Call, Observation, Role, Segment, ToolCallResult, Turn, probe_lines
from arpo.errors import ConfigError
from arpo.files import as_json
from arpo.view.forks import fork_at
from arpo.view.pieces import Pieces
from arpo.view.rows import discarded, text_note

Answer = dict[str, Any]
_DIGITS = 5  # of a log-probability or an entropy: about the precision of float32


class Decoder(Protocol):
    """Turns tokens into text: `Pieces`, or a chat format."""

    def text(self, tokens: Sequence[int]) -> str: ...


def tree_answer(record: TreeRecord, pieces: Decoder | None) -> Answer:
    """Tree: every segment in preorder with its text, decision and credit; every leaf with its reward."""
    shown = _TreeView(record, pieces)
    task = record.notes.get("task")
    config = record.config
    return {
        "step": record.tree.step,
        "task": {
            "id": record.tree.task,
            "question": text_note(record, "question"),
            "answers": list(task.get("answers", ())) if isinstance(task, dict) else [],
            "family": text_note(record, "family"),
        },
        "rule": as_json(asdict(config.rule)) if is_dataclass(config.rule) else {"rule": repr(config.rule)},  # type: ignore[arg-type]
        "growth": {
            "leaves": config.leaves,
            "roots": None if isinstance(config.roots, Pilot) else config.roots,
            "head": config.head,
            "seed": config.seed,
        },
        "nodes": shown.nodes(),
        "leaves": shown.leaves(),
        "tokenizer": pieces is not None,
        "failures": [str(text) for text in _listed(record.notes.get("failures"))],
    }


def tokens_answer(record: TreeRecord, node: str, pieces: Pieces | None) -> Answer:
    """Tokens of one segment. Raises ConfigError if the tree has no such node."""
    tree = record.tree
    try:
        kind, place = node[:1], read_place("-" if node == "-" else node[1:])
        if kind not in ("-", "t", "o"):
            raise KeyError(kind)
        segment: Segment = (
            tree.prompt if node == "-" else tree.turns[place] if kind == "t" else tree.observations[place]
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "this tree has no such node", where=f"task {tree.task}", value=node, hint="t0.1, o0.1 or -"
        ) from error
    answer: Answer = {
        "node": node,
        "ids": list(segment.tokens),
        "pieces": None if pieces is None else pieces.split(segment.tokens),
        **dict.fromkeys(("logprobs", "entropies", "low", "high", "learner_logprobs", "advantages")),
        "versions": [],
    }
    if isinstance(segment, Turn):
        low, high = segment.bounds if segment.bounds is not None else (None, None)
        learner = record.notes.get("learner_logprobs")
        mean = _TreeView(record, None).credit.get(place)
        answer |= {
            "logprobs": _numbers(segment.logprobs),
            "entropies": _numbers(segment.entropies),
            "low": None if low is None else _numbers(low),
            "high": None if high is None else _numbers(high),
            "learner_logprobs": _learner(
                learner.get(show(place)) if isinstance(learner, dict) else None, len(segment.tokens)
            ),
            "advantages": None if mean is None else [round(mean["mean"], _DIGITS)] * len(segment.tokens),
            "versions": [list(span) for span in segment.versions],
        }
    return answer


def said(record: TreeRecord, made: TipDecision, budget: int | None) -> str:
    """The decision in words: "rise +0.34 (0.58 after 0.24), probability 0.5063 > tau 0.5, 5 leaves left: 1 branch"."""
    tip, decision = made.tip, made.decided.decision
    if tip is None:
        return "no decision: the world failed before the next head was known"
    terms = decision.terms
    known = {"head", "baseline", "rise", "rise_low", "rise_high", "head_low", "head_high"}
    parts = []
    for bound, measured in (("tau", "probability"), ("theta", "head"), ("probability", "draw")):
        if bound in terms and measured in terms:
            sign = ">" if terms[measured] > terms[bound] else "<" if terms[measured] < terms[bound] else "="
            parts.append(f"{measured} {terms[measured]:.4g} {sign} {bound} {terms[bound]:.4g}")
            known |= {bound, measured}
            break
    parts += [f"{name} {value:g}" for name, value in terms.items() if name not in known]
    wanted, granted = decision.wanted, made.decided.granted
    if budget is not None and wanted:
        parts.append(f"{budget} {'leaf' if budget == 1 else 'leaves'} left")
    few = f"wanted {wanted}, " if granted < wanted else ""
    given = few + ("no branch" if not granted else "1 branch" if granted == 1 else f"{granted} branches")
    rise = f"rise {tip.rise:+.2f} ({tip.head:.2f} after {tip.baseline:.2f})"
    return f"{', '.join([rise, *parts])}: {given}"


class _TreeView:
    """A record with the values that several of its nodes need."""

    def __init__(self, record: TreeRecord, pieces: Decoder | None) -> None:
        self.record, self.tree, self.pieces = record, record.tree, pieces
        self.below: dict[Place, int] = defaultdict(int)
        for leaf in self.tree.endings:
            for depth in range(len(leaf) + 1):
                self.below[leaf[:depth]] += 1
        values: dict[Place, list[float]] = defaultdict(list)
        for (turn, _), value in record.credit.items():
            values[turn].append(value)
        self.credit = {
            turn: {"low": min(v), "high": max(v), "mean": round(math.fsum(v) / len(v), _DIGITS)}
            for turn, v in values.items()
        }  # by turn, over the leaves below
        self.discarded = discarded(record)
        self.budgets = _budgets(record)

    def nodes(self) -> list[Answer]:
        prompt = self.record.notes.get("prompt")
        tokens = self.tree.prompt.tokens
        text = prompt if isinstance(prompt, str) else self._decoded(tokens, "")
        nodes = [self._node("-", (), None, "prompt", tokens, text)]
        for place in sorted(self.tree.turns):
            nodes.append(self._turn(self.tree.turns[place]))
            if place in self.tree.observations:
                nodes.append(self._observation(self.tree.observations[place]))
        return nodes

    def _node(self, name: str, place: Place, parent: str | None, kind: str, tokens: Sequence[int], text: str) -> Answer:
        depth = len(place) if kind == "observation" else max(len(place) - 1, 0)
        shared = {
            "id": name,
            "place": show(place),
            "parent": parent,
            "depth": depth,
            "tokens": len(tokens),
            "text": text,
        }
        return {**shared, "leaves": self.below[place], "kind": kind}

    def _turn(self, turn: Turn) -> Answer:
        place = turn.place
        texts = self.record.notes.get("texts")
        written = texts.get(show(place)) if isinstance(texts, dict) else None
        text = written if isinstance(written, str) else self._decoded(turn.tokens, "")
        parent = f"o{show(place[:-1])}" if len(place) > 1 else "-"
        return {
            **self._node(f"t{show(place)}", place, parent, "turn", turn.tokens, text),
            "role": turn.role.value,
            "finish": turn.finish.value,
            "head": _number(head_entropy(turn.entropies, self.record.config.head)) if turn.tokens else None,
            "entropy": _number(math.fsum(turn.entropies) / len(turn.entropies)) if turn.entropies else None,
            "calls": [
                {"tool": c.name, "arguments": as_json(c.arguments), "error": c.error, "mended": c.mended}
                for c in turn.calls
            ],
            "credit": as_json(self.credit.get(place)),
            "reward": self._reward(place),
            "discarded": _outcomes(self.discarded.get(place, ()), turn.calls),
        }

    def _reward(self, place: Place) -> float | None:
        """The reward of the turn alone: what the environment gave it, else what all leaves below say of it."""
        given = self.record.notes.get("environment")
        if isinstance(given, dict) and isinstance(step := given.get(show(place)), list) and step:
            return _number(step[0])
        scores = [score for leaf, score in self.record.scores.items() if leaf[: len(place)] == place]
        rewards = {score.turns[len(place) - 1] for score in scores if len(score.turns) >= len(place)}
        return _number(rewards.pop()) if len(rewards) == 1 else None

    def _observation(self, seen: Observation) -> Answer:
        place = seen.place
        text = self._decoded(seen.tokens, "\n".join(outcome.text for outcome in seen.outcomes))
        return {
            **self._node(f"o{show(place)}", place, f"t{show(place)}", "observation", seen.tokens, text),
            "outcomes": _outcomes(seen.outcomes, self.tree.turns[place].calls),
            "before": self._before(seen),
            "decision": self._decision(place),
        }

    def _before(self, seen: Observation) -> Answer | None:
        """The context that a rewriting replaced, up to the turn before it."""
        if not seen.new_context:
            return None
        tokens = [*self.tree.context(seen.place[:-1]), *self.tree.turns[seen.place].tokens]
        return {"tokens": len(tokens), "text": self._decoded(tokens, "")}

    def _decoded(self, tokens: Sequence[int], otherwise: str) -> str:
        return otherwise if self.pieces is None else self.pieces.text(tokens)

    def _decision(self, place: Place) -> Answer | None:
        made = self.record.decisions.get(place)
        if made is None:
            return None
        tip, decision = made.tip, made.decided.decision
        fork = fork_at(self.record, place)
        low, high = tip.rises if tip is not None else (None, None)
        return {
            "rise": _number(tip.rise if tip else None),
            "rise_low": _number(low),
            "rise_high": _number(high),
            "head": _number(tip.head if tip else None),
            "baseline": _number(tip.baseline if tip else None),
            "terms": {name: _number(value) for name, value in decision.terms.items()},
            "score": _number(decision.score),
            "wanted": decision.wanted,
            "granted": made.decided.granted,
            "refused": max(decision.wanted - made.decided.granted, 0),
            "flips": decision.flips,
            "waited": made.decided.waited,
            "budget": self.budgets.get(place),
            "said": said(self.record, made, self.budgets.get(place)),
            "probe": fork.probe,
            "siblings": list(fork.siblings),
        }

    def leaves(self) -> list[Answer]:
        return [self._leaf(place) for place in self.tree.leaves()]

    def _leaf(self, place: Place) -> Answer:
        score, path = self.record.scores.get(place), self.tree.path(place)
        answers, why = self.record.notes.get("answers"), self.record.notes.get("scores")
        answer = answers.get(show(place)) if isinstance(answers, dict) else None
        reasons = why.get(show(place)) if isinstance(why, dict) else None
        missing = f"o{show(place[:-1])}" if len(place) > 1 else "-"
        outcomes = [outcome for segment in path if isinstance(segment, Observation) for outcome in segment.outcomes]
        return {
            "place": show(place),
            "node": f"t{show(place)}" if place in self.tree.turns else missing,
            "ending": self.tree.endings[place].value,
            "reward": score and _number(score.reward),
            "accuracy": score and _number(score.accuracy),
            "parts": {name: _number(value) for name, value in score.parts.items()} if score else {},
            "reasons": {str(k): str(v) for k, v in reasons.items()} if isinstance(reasons, dict) else {},
            "answer": answer if isinstance(answer, str) else None,
            "advantage": _number(self.record.advantages.get(place)),
            "tokens": sum(len(segment.tokens) for segment in path),
            "calls": len(outcomes) + len(self.discarded.get(place, ())),
            "probe_line": place in probe_lines(self.tree, _planned_roots(self.record)),
        }


def _planned_roots(record: TreeRecord) -> int:
    """N: the configured number, or, with a pilot, the number of roots that are not fills."""
    roots = record.config.roots
    if not isinstance(roots, Pilot):
        return roots
    fills = {place[0] for place, turn in record.tree.turns.items() if turn.role is Role.FILL}
    everything = {place[0] for place in (*record.tree.turns, *record.tree.endings)}
    return len(everything - fills)


def _budgets(record: TreeRecord) -> dict[Place, int]:
    """The budget that was left at every decision. The record holds decisions in the order in which they became
    final."""
    left = record.config.leaves - _planned_roots(record)
    budgets = {}
    for place, made in record.decisions.items():
        budgets[place] = left
        left -= made.decided.granted
    return budgets


def _outcomes(outcomes: Iterable[ToolCallResult], calls: Sequence[Call]) -> list[Answer]:
    arguments: list[Mapping[str, object]] = [call.arguments for call in calls]
    return [
        {
            "tool": o.tool,
            "arguments": as_json(arguments[number]) if number < len(arguments) else {},
            "status": o.status.value,
            "text": o.text,
            "seconds": _number(o.seconds) or 0.0,
            "cut": o.cut,
            "cached": o.cached,
            "shared": o.shared,
            "fault": o.fault,
            "attempts": o.attempts,
            "cost": _number(o.cost) or 0.0,
        }
        for number, o in enumerate(outcomes)
    ]


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _learner(values: object, length: int) -> list[float | None] | None:
    """The values in the record's notes for a turn, if they match its tokens."""
    return _numbers(values) if isinstance(values, array) and len(values) == length else None


def _number(value: float | None) -> float | None:
    """`value` for JSON, which has no NaN and no infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [round(value, _DIGITS) if math.isfinite(value) else None for value in values]
