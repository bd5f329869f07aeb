"""Converts records to JSON values and back. Only this module knows the schema of the event log.

Token arrays are base64 of little-endian bytes. The tree holds every turn once, and events name it. Text and arguments
that a model wrote are data: no key inside them has a meaning here.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import TYPE_CHECKING, Any, get_args

from arpo.core.adaptive import AnyRule
from arpo.core.branching import BranchRule, Decision, StepStats, Tip
from arpo.core.estimators import Mask
from arpo.core.events import Decided, Event, Failed, HeadKnown, Returned, TurnEnded
from arpo.core.expansion import ExpansionConfig, TipDecision
from arpo.core.place import Place, read_place, show
from arpo.core.roots import Pilot
from arpo.core.score import Score
from arpo.core.tree import (
    Call,
    CallStatus,
    FinishReason,
    Observation,
    Prompt,
    Role,
    RolloutTree,
    StopReason,
    ToolCallResult,
    Turn,
)
from arpo.errors import FormatError
from arpo.foreign import checked, is_number

if TYPE_CHECKING:
    from arpo.core.record import TreeRecord

SCHEMA = 2
ELSEWHERE = ("place", "turn", "text", "observation")  # fields of a tip that a record holds in other places
MOST_STEPS = 1_000_000_000
_RULES: Mapping[str, type] = {cls.__dataclass_fields__["rule"].default: cls for cls in get_args(AnyRule)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRule:
    """Stands for a rule from outside arpo: a record holds the rule's name and repr, not its code."""

    rule: str
    described: str

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        raise self._code_missing()

    def most(self, depth: int) -> int:
        raise self._code_missing()

    def _code_missing(self) -> FormatError:
        return FormatError(
            f"the rule {self.rule} ({self.described}) grew this record, and the record does not hold its code: "
            "pass the rule to replay"
        )


def pack(record: TreeRecord) -> dict[str, object]:
    """The record as JSON values. `json.dumps` raises a TypeError for a value that JSON cannot hold."""
    tree = record.tree
    return {
        "schema": record.schema,
        "task": tree.task,
        "step": tree.step,
        "prompt": _pack_array(tree.prompt.tokens),
        "growth": _pack_config(record.config),
        "turns": [_pack_turn(turn) for _, turn in sorted(tree.turns.items())],
        "observations": [_pack_observation(observation) for _, observation in sorted(tree.observations.items())],
        "endings": {show(place): ending for place, ending in tree.endings.items()},
        "events": [_pack_event(event, tree) for event in record.events],
        "decisions": [_pack_decision(decision) for decision in record.decisions.values()],
        "scores": {
            show(place): [s.reward, s.accuracy, dict(s.parts), *([s.turns] if s.turns else [])]
            for place, s in record.scores.items()
        },
        "advantages": {show(place): value for place, value in record.advantages.items()},
        "credit": [[show(turn), show(leaf), value] for (turn, leaf), value in record.credit.items()],
        **({"mask": _pack_mask(record.mask)} if record.mask else {}),
        "notes": _pack_note(record.notes),
    }


def unpack(make: Callable[..., TreeRecord], value: Any) -> TreeRecord:
    """The inverse of `pack`; `make` is `TreeRecord`. Raises FormatError for another schema; the caller names the
    frame."""
    if (schema := value["schema"]) != SCHEMA:
        wrong = f"has record schema {schema!r}, and this version of arpo reads schema {SCHEMA}"
        if isinstance(schema, int) and schema != SCHEMA:
            wrong += f": read it with the {'newer' if schema > SCHEMA else 'older'} version that wrote it"
        raise FormatError(wrong)
    task, step = value["task"], value["step"]
    if not isinstance(task, str) or not (isinstance(step, str) or (type(step) is int and abs(step) < MOST_STEPS)):
        raise FormatError(f"holds the task {task!r:.80} at step {step!r:.40}")
    if not isinstance(notes := _unpack_note(value["notes"]), Mapping):
        raise FormatError(f"holds the notes {notes!r:.80}")
    tree = RolloutTree(task, step, Prompt(tokens=_unpack_tokens(value["prompt"])))
    segments: list[Turn | Observation] = [
        *map(_unpack_turn, value["turns"]),
        *map(_unpack_observation, value["observations"]),
    ]
    for segment in sorted(segments, key=lambda s: (s.place, isinstance(s, Observation))):
        tree.grow(segment)
    for place, ending in value["endings"].items():
        tree.end(read_place(place), StopReason(ending))
    return make(
        config=_unpack_config(value["growth"]),
        tree=tree,
        events=tuple(_unpack_event(event, tree) for event in value["events"]),
        decisions={decision.decided.place: decision for decision in map(_unpack_decision, value["decisions"])},
        scores={
            read_place(p): Score(
                reward=_number(r),
                accuracy=_number(a),
                parts={name: _number(part) for name, part in parts.items()},
                turns=tuple(map(_number, turns[0])) if turns else (),
            )
            for p, (r, a, parts, *turns) in value["scores"].items()
        },
        advantages={read_place(place): _number(number) for place, number in value["advantages"].items()},
        credit={(read_place(turn), read_place(leaf)): _number(number) for turn, leaf, number in value["credit"]},
        mask=_unpack_mask(value.get("mask", []), tree),
        notes=notes,
    )


# --- arrays, masks and notes


def _pack_mask(mask: Mask) -> list[object]:
    """A text of 0 and 1 for each pair, a token each."""
    return [[show(turn), show(leaf), "".join("01"[bool(m)] for m in own)] for (turn, leaf), own in mask.items()]


def _unpack_mask(value: Any, tree: RolloutTree) -> dict[tuple[Place, Place], list[bool]]:
    mask = {(read_place(turn), read_place(leaf)): [m == "1" for m in text] for turn, leaf, text in value}
    for (turn, _), own in mask.items():
        if turn not in tree.turns or len(own) != len(tree.turns[turn].tokens):
            raise FormatError(f"holds a mask of {len(own)} tokens for turn {show(turn)}")
    return mask


def _unpack_tokens(text: str) -> array[int]:
    tokens = _unpack_array("i", text)
    if tokens and min(tokens) < 0:
        raise FormatError(f"holds the token {min(tokens)}")
    return tokens


def _pack_array(values: array[Any]) -> str:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")


def _unpack_array(typecode: str, text: str) -> array[Any]:
    values = array(typecode)
    values.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _pack_note(value: object) -> object:
    """Mappings become `{"map": ...}` and arrays `{"f": ...}`, so that no key of a note can pass for either."""
    if isinstance(value, array):
        if value.typecode not in "ifd":
            raise TypeError(f"a note holds an array of {value.typecode!r}: a record can hold arrays of 'i', 'f' or 'd'")
        return {value.typecode: _pack_array(value)}
    if isinstance(value, Mapping):
        return {"map": {str(key): _pack_note(item) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_pack_note(item) for item in value]
    return value


def _unpack_note(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack_note(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return {key: _unpack_note(item) for key, item in content.items()} if kind == "map" else _unpack_array(kind, content)


# --- segments


def _pack_bounds(bounds: tuple[array[float], array[float]] | None) -> list[str] | None:
    return bounds and [_pack_array(bounds[0]), _pack_array(bounds[1])]  # type: ignore[return-value]


def _unpack_bounds(value: list[str] | None) -> tuple[array[float], array[float]] | None:
    return None if value is None else (_unpack_array("f", value[0]), _unpack_array("f", value[1]))


def _pack_turn(turn: Turn) -> dict[str, object]:
    return {
        "place": show(turn.place),
        "role": turn.role,
        "tokens": _pack_array(turn.tokens),
        "logprobs": _pack_array(turn.logprobs),
        "entropies": _pack_array(turn.entropies),
        "bounds": _pack_bounds(turn.bounds),
        "versions": turn.versions,
        "finish": turn.finish,
        "calls": [_pack_call(call) for call in turn.calls],
    }


def _unpack_turn(value: Any) -> Turn:
    turn = Turn(
        place=read_place(value["place"]),
        role=Role(value["role"]),
        tokens=_unpack_tokens(value["tokens"]),
        logprobs=_unpack_array("f", value["logprobs"]),
        entropies=_unpack_array("f", value["entropies"]),
        bounds=_unpack_bounds(value["bounds"]),
        versions=tuple((version, count) for version, count in value["versions"]),
        finish=FinishReason(value["finish"]),
        calls=tuple(_unpack_call(*call) for call in value["calls"]),
    )
    return checked(turn)


def _pack_call(call: Call) -> list[object]:
    values: list[object] = [call.name, dict(call.arguments), call.error]
    return [*values, call.id, call.mended] if call.id or call.mended else values


def _unpack_call(name: str, arguments: Mapping[str, object], error: str, id: str = "", mended: str = "") -> Call:
    return Call(name=name, arguments=arguments, error=error, id=id, mended=mended)


def _pack_observation(observation: Observation) -> dict[str, object]:
    outcomes = [_pack_outcome(outcome) for outcome in observation.outcomes]
    new: dict[str, object] = {"new_context": True} if observation.new_context else {}
    return {"place": show(observation.place), "tokens": _pack_array(observation.tokens), "outcomes": outcomes, **new}


def _pack_outcome(o: ToolCallResult) -> list[object]:
    values: list[object] = [o.tool, o.status, o.text, o.seconds, o.cut, o.cached]
    optional = {"shared": o.shared, "fault": o.fault, "attempts": o.attempts, "cost": o.cost}
    changed = {
        name: value for name, value in optional.items() if value != ToolCallResult.__dataclass_fields__[name].default
    }
    return [*values, changed] if changed else values


def _unpack_outcome(value: Any) -> ToolCallResult:
    tool, status, text, seconds, cut, cached, *rest = value
    changed = rest[0] if rest else {}
    return ToolCallResult(
        tool=tool, status=CallStatus(status), text=text, seconds=seconds, cut=cut, cached=cached, **changed
    )


def _unpack_observation(value: Any) -> Observation:
    outcomes = tuple(_unpack_outcome(outcome) for outcome in value["outcomes"])
    tokens = _unpack_tokens(value["tokens"])
    new = value.get("new_context", False)
    return checked(Observation(place=read_place(value["place"]), tokens=tokens, outcomes=outcomes, new_context=new))


# --- events and decisions


def _pack_event(event: Event, tree: RolloutTree) -> list[object]:
    match event:
        case HeadKnown(place, entropies, bounds):
            turn = tree.turns.get(place)
            count = len(entropies)
            if turn is not None and turn.entropies[:count] == entropies and _first(turn.bounds, count) == bounds:
                return ["head", show(place), count]  # the tree holds the turn that starts with these
            return ["head", show(place), _pack_array(entropies), _pack_bounds(bounds)]
        case TurnEnded(turn, ending):
            return ["turn", show(turn.place), ending]
        case Returned(observation, None):
            return ["returned", show(observation.place), None]
        case Returned(observation, ending):
            return ["returned", _pack_observation(observation), ending]  # the tree does not hold this observation
        case Failed(place, ending):
            return ["failed", show(place), ending]


def _unpack_event(value: Any, tree: RolloutTree) -> Event:
    match value:
        case ["head", place, int(count)]:
            turn = tree.turns[read_place(place)]
            return HeadKnown(turn.place, turn.entropies[:count], _first(turn.bounds, count))
        case ["head", place, entropies, bounds]:
            return HeadKnown(read_place(place), _unpack_array("f", entropies), _unpack_bounds(bounds))
        case ["turn", place, ending]:
            return TurnEnded(tree.turns[read_place(place)], None if ending is None else StopReason(ending))
        case ["returned", place, None]:
            return Returned(tree.observations[read_place(place)])
        case ["returned", observation, ending]:
            return Returned(_unpack_observation(observation), StopReason(ending))
        case ["failed", place, ending]:
            return Failed(read_place(place), StopReason(ending))
    raise FormatError(f"holds an unknown event: {value!r}")


def _first(bounds: tuple[array[float], array[float]] | None, count: int) -> tuple[array[float], array[float]] | None:
    return None if bounds is None else (bounds[0][:count], bounds[1][:count])


def _pack_decision(tip_decision: TipDecision) -> dict[str, object]:
    decided, tip = tip_decision.decided, tip_decision.tip
    decision = decided.decision
    return {
        "place": show(decided.place),
        "tip": None if tip is None else {f.name: getattr(tip, f.name) for f in fields(tip) if f.name not in ELSEWHERE},
        "decision": {
            "wanted": decision.wanted,
            "score": decision.score,
            "terms": dict(decision.terms),
            "flips": decision.flips,
        },
        "granted": decided.granted,
        "waited": decided.waited,
    }


def _unpack_decision(value: Any) -> TipDecision:
    place, fields_ = read_place(value["place"]), value["tip"]
    tip = None if fields_ is None else Tip(place=place, **{**fields_, "heads": tuple(fields_["heads"])})
    return checked(TipDecision(tip, Decided(place, Decision(**value["decision"]), value["granted"], value["waited"])))


# --- configuration


def _pack_config(config: ExpansionConfig) -> dict[str, object]:
    packed: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    packed["rule"] = _pack_rule(config.rule)
    packed["stats"] = [config.stats.step, list(config.stats.window)]
    if config.stats.outcomes:
        packed["stats"].append(config.stats.outcomes)
    packed["roots"] = {"beta": config.roots.beta} if isinstance(config.roots, Pilot) else config.roots
    return packed


def _unpack_config(value: Any) -> ExpansionConfig:
    step, window, *outcomes = value["stats"]
    roots = Pilot(**value["roots"]) if isinstance(value["roots"], dict) else _count(value["roots"])
    _count(value["leaves"])
    stats = StepStats(step=step, window=tuple(window), outcomes=tuple(map(tuple, outcomes[0])) if outcomes else ())
    return checked(ExpansionConfig(**{**value, "rule": _unpack_rule(value["rule"]), "stats": stats, "roots": roots}))


def _number(value: Any) -> float:
    """A finite number. Means and plots take no other."""
    if not is_number(value) or value != value:
        raise FormatError(f"holds {value!r:.40} as a number")
    return value


def _count(value: Any) -> int:
    """A number of leaves or roots. It has a limit because replay allocates memory for as many."""
    if type(value) is not int or not 1 <= value <= 1_000_000:
        raise FormatError(f"holds {value!r:.80} as a number of leaves or roots (expected 1 to 1000000)")
    return value


def _pack_rule(rule: BranchRule) -> dict[str, object]:
    if type(rule) in _RULES.values() or isinstance(rule, ForeignRule):
        return {f.name: getattr(rule, f.name) for f in fields(rule)}  # type: ignore[arg-type]
    cls = rule if isinstance(rule, type) else type(rule)
    return {"rule": f"{cls.__module__}:{cls.__qualname__}", "described": repr(rule)}


def _unpack_rule(value: Mapping[str, Any]) -> BranchRule:
    name = value["rule"]
    if name not in _RULES:
        return ForeignRule(**value)
    return _RULES[name](**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})
