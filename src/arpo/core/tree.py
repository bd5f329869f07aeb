"""The rollout tree of one task: tokens with one author a segment, stored once however many branches share them.

Knows places, segments and endings. Refuses to know text, tools, models, time and where the tokens came from.

    Prompt ─ Turn (0,) ─ Observation ─┬─ Turn (0, 0)   probe                 a tip is the end of an Observation;
           │                          └─ Turn (0, 1)   sibling               children of a tip are numbered from its probe
           └ Turn (1,)  ...                                                  a leaf is a Turn with an Ending
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from arpo.core.place import Place, Step, show


class Role(StrEnum):
    """Why a turn was sampled."""

    ROOT = "root"  # one of the N planned first turns
    PROBE = "probe"  # the first continuation of a tip: every line goes on through probes
    SIBLING = "sibling"  # a further continuation of a tip: a branch
    FILL = "fill"  # a first turn started because budget was left over; never branches


class FinishReason(StrEnum):
    STOP = "stop"  # a stop string or stop token, kept in the turn
    LENGTH = "length"  # max_tokens reached


class StopReason(StrEnum):
    """How a branch ended."""

    FINISHED = "finished"  # the policy ended its turn without a tool call
    TURN_LENGTH = "turn_length"  # a turn reached its token limit
    BRANCH_LENGTH = "branch_length"  # the branch reached its token limit (tool text included)
    CALL_LIMIT = "call_limit"  # a further call at the call limit, where the recipe ends the branch there
    ENGINE_FAILED = "engine_failed"  # the world's fault: no reward, leaves the group
    TOOL_FAILED = "tool_failed"  # the world's fault: the provider was down
    REPLAY_MISS = "replay_miss"  # nobody's fault: a call that was never recorded, in a run that replays calls

    @property
    def by_world(self) -> bool:
        """True where the world, not the policy, ended the branch: such a leaf has no reward."""
        return self in (StopReason.ENGINE_FAILED, StopReason.TOOL_FAILED, StopReason.REPLAY_MISS)


class CallStatus(StrEnum):
    """What became of one tool call."""

    OK = "ok"
    ERROR = "error"  # the tool ran and failed (an exception, a traceback); the model reads why
    TIMEOUT = "timeout"  # the deadline fired
    REFUSED = "refused"  # never ran: malformed, unknown tool, arguments that do not fit, or no calls left
    UNAVAILABLE = "unavailable"  # the provider is down: the world's fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call as the policy wrote it. `error` says why it cannot be run (malformed), else it is empty."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallResult:
    """What one call of a turn came to. `text` is the tool's full text, before any cut to the token limit.

    Where a result came from and what it cost is not compared: equal trees may have waited for different things.
    """

    tool: str
    status: CallStatus
    text: str
    seconds: float = field(default=0.0, compare=False)  # that the tool took, in its last attempt
    cut: bool = False  # True: the model saw only the beginning
    cached: bool = field(default=False, compare=False)  # from the cache, or from the record of an earlier run
    shared: bool = field(default=False, compare=False)  # of an equal call that was under way
    fault: str = ""  # why it failed: "raised TypeError", "told" (a ToolError), "reported" (in a result), "deadline", "provider"
    attempts: int = field(default=1, compare=False)  # more than 1: the provider failed before
    cost: float = field(default=0.0, compare=False)  # money

    @property
    def answered(self) -> bool:
        """True where the tool had its say, now or earlier: neither refused nor unavailable."""
        return self.status in (CallStatus.OK, CallStatus.ERROR, CallStatus.TIMEOUT)

    @property
    def ran(self) -> bool:
        """True where the tool was really executed for this call."""
        return self.answered and not self.cached and not self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    tokens: array[int]  # 'i'


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Tokens that the policy sampled in one go. Arrays run over tokens (int32, float32, float32)."""

    place: Place
    role: Role
    tokens: array[int]  # 'i'
    logprobs: array[float]  # 'f', ln p of each token at the sampling temperature, by the engine that wrote it
    entropies: array[float]  # 'f', nats, temperature 1 (midpoint of the bounds where the engine gives an interval)
    bounds: tuple[array[float], array[float]] | None = None  # lower and upper entropies; None: exact
    versions: tuple[tuple[int, int], ...] = ()  # (weight version, tokens written by it) spans, in order
    finish: FinishReason = FinishReason.STOP
    calls: tuple[Call, ...] = ()

    @property
    def parent(self) -> Place:
        return self.place[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What came back for all calls of the turn at `place`, with the template text that leads to the next turn."""

    place: Place  # of the turn it answers
    tokens: array[int]  # 'i'
    outcomes: tuple[ToolCallResult, ...]  # in call order


Segment = Prompt | Turn | Observation


class RolloutTree:
    """An append-only tree. Two trees are equal if they hold the same segments and endings, in whatever order they grew."""

    __slots__ = ("_children", "endings", "observations", "prompt", "step", "task", "turns")

    def __init__(self, task: str, step: Step, prompt: Prompt) -> None:
        self.task, self.step, self.prompt = task, step, prompt
        self.turns: dict[Place, Turn] = {}
        self.observations: dict[Place, Observation] = {}
        self.endings: dict[Place, StopReason] = {}
        self._children: dict[Place, list[Place]] = {}  # of `turns` by parent, sorted; follows from `turns`

    def grow(self, segment: Turn | Observation) -> None:
        """Append a segment. Raises ValueError where its place is taken or its parent is missing."""
        place = segment.place
        if isinstance(segment, Turn):
            if not place:
                raise ValueError("a turn's place names at least its root: () is the prompt")
            if place in self.turns or place in self.endings:
                raise ValueError(f"turn {show(place)} is already there")
            self._check_parent(place)
            self.turns[place] = segment
            insort(self._children.setdefault(place[:-1], []), place)
        else:
            if place in self.observations or place in self.endings:
                raise ValueError(f"turn {show(place)} already has an observation or an ending")
            if place not in self.turns:
                raise ValueError(f"observation at {show(place)} has no turn")
            self.observations[place] = segment

    def end(self, place: Place, ending: StopReason) -> None:
        """Make the turn at `place` a leaf. A leaf that the engine never wrote (ENGINE_FAILED) has an ending without a turn."""
        if place in self.endings or place in self.observations:
            raise ValueError(f"turn {show(place)} already has an observation or an ending")
        if place not in self.turns:
            if not place or not ending.by_world:
                raise ValueError(f"{show(place)} has no turn that could end as {ending}")
            self._check_parent(place)
        self.endings[place] = ending

    def _check_parent(self, place: Place) -> None:
        if len(place) > 1 and place[:-1] not in self.observations:
            raise ValueError(f"turn {show(place)} has no observation before it")

    def leaves(self) -> list[Place]:
        """Places of all finished leaves in preorder."""
        return sorted(self.endings)

    def children(self, place: Place) -> list[Place]:
        """Places of the turns that follow `place` (the prompt is `()`), in order."""
        return list(self._children.get(place, ()))

    def path(self, place: Place) -> list[Segment]:
        """Segments from the prompt to the turn at `place`, with the observations between."""
        return [self.prompt, *chain.from_iterable(self._upto(place))]

    def _upto(self, place: Place) -> Iterator[tuple[Segment, ...]]:
        for depth in range(1, len(place) + 1):
            here = place[:depth]
            if here not in self.turns:  # a leaf whose engine failed before it wrote anything
                return
            turn = self.turns[here]
            yield (turn,) if depth == len(place) else (turn, self.observations[here])

    def context(self, place: Place) -> array[int]:
        """Tokens in front of the next turn after `place`: prompt, turns and observations up to and with the one at `place`."""
        tokens = array("i", self.prompt.tokens)
        for depth in range(1, len(place) + 1):
            tokens.extend(self.turns[place[:depth]].tokens)
            tokens.extend(self.observations[place[:depth]].tokens)
        return tokens

    def branch(self, leaf: Place) -> Branch:
        return Branch(leaf, tuple(self.path(leaf)), self.endings[leaf])

    def branches(self) -> list[Branch]:
        return [self.branch(leaf) for leaf in self.leaves()]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RolloutTree):
            return NotImplemented
        names = ("task", "step", "prompt", "turns", "observations", "endings")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RolloutTree({self.task!r}, step={self.step!r}, turns={len(self.turns)}, leaves={len(self.endings)})"


@dataclass(frozen=True, slots=True)
class Branch:
    """A root-to-leaf view of a tree."""

    leaf: Place
    segments: tuple[Segment, ...]
    ending: StopReason

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(s for s in self.segments if isinstance(s, Turn))

    @property
    def observations(self) -> tuple[Observation, ...]:
        return tuple(s for s in self.segments if isinstance(s, Observation))

    @property
    def tokens(self) -> array[int]:
        return array("i", chain.from_iterable(s.tokens for s in self.segments))


def probe_lines(tree: RolloutTree, planned_roots: int) -> list[Place]:
    """Leaves of the planned roots' probe lines: root k, then the probe at every tip; no siblings, no fills.

    They are what the policy would have written without any branching, so means over them compare with GRPO's (section 4).
    A line that has not ended yet is left out.
    """
    return [leaf for leaf in tree.leaves() if leaf[0] < planned_roots and not any(leaf[1:])]


def fork_weights(tree: RolloutTree, leaves: Iterable[Place] | None = None) -> dict[Place, float]:
    """Weight of each leaf: the product of 1 / number of children over the forks on its path. The weights sum to 1.

    Only children that lead to one of `leaves` count (all finished leaves without the argument), so that leaves without a score
    can be left out. A mean with these weights is still biased (section 4): unsure paths are forked more often.
    """
    chosen = tree.leaves() if leaves is None else sorted(leaves)
    children: dict[Place, set[Place]] = {}
    for leaf in chosen:
        if leaf not in tree.endings:
            raise ValueError(f"{show(leaf)} is not a finished leaf")
        for depth in range(len(leaf)):
            children.setdefault(leaf[:depth], set()).add(leaf[: depth + 1])
    weights: dict[Place, float] = {}
    for leaf in chosen:
        weight = 1.0
        for depth in range(len(leaf)):
            weight /= len(children[leaf[:depth]])
        weights[leaf] = weight
    return weights
