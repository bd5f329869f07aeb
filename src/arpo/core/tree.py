"""The rollout tree of one task. Every segment has one author, and the tree stores it once however many branches share
it.

Knows places, segments and endings. Refuses to know text, tools, models, time and where the tokens came from.

    Prompt ─ Turn (0,) ─ Observation ─┬─ Turn (0, 0)   probe           a tip is the end of an Observation;
           │                          └─ Turn (0, 1)   sibling         the probe is child 0 of a tip, siblings follow;
           └ Turn (1,)  ...                                            a leaf is a Turn with a StopReason

A *context* is what a turn reads: from the prompt, or from the last Observation before it with `new_context`, down to
it. A branch whose history is rewritten has several; branching, endings and credit do not ask which.
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
    PROBE = "probe"  # the first continuation of a tip: a line continues through probes
    SIBLING = "sibling"  # a further continuation of a tip: a branch
    FILL = "fill"  # a first turn that uses left-over budget; it never branches


class FinishReason(StrEnum):
    STOP = "stop"  # a stop string or stop token, kept in the turn
    LENGTH = "length"  # max_tokens reached


class StopReason(StrEnum):
    """Why a branch ended."""

    FINISHED = "finished"  # the policy ended its turn without a tool call, or the environment ended the episode
    TURN_LENGTH = "turn_length"  # a turn reached its token limit
    BRANCH_LENGTH = "branch_length"  # the branch reached its token limit (tool text included)
    CALL_LIMIT = "call_limit"  # a call beyond the limit, where the recipe ends the branch there, or a turn beyond it
    ENGINE_FAILED = "engine_failed"  # infrastructure failure: no reward, leaves the group
    TOOL_FAILED = "tool_failed"  # infrastructure failure: the provider was down
    REPLAY_MISS = "replay_miss"  # a run that replays calls met a call that was never recorded
    ENVIRONMENT_FAILED = "environment_failed"  # the code of an environment raised, or was too late
    CONTEXT_CHANGED = "context_changed"  # an outside agent asked for a turn with another history than the branch's

    @property
    def aborted(self) -> bool:
        """True if an infrastructure failure, not the policy, ended the branch: such a leaf has no reward."""
        return self in (StopReason.ENGINE_FAILED, StopReason.TOOL_FAILED, *FOR_GOOD)


FOR_GOOD = (StopReason.REPLAY_MISS, StopReason.ENVIRONMENT_FAILED, StopReason.CONTEXT_CHANGED)
"""Failures that another attempt would meet again."""


class CallStatus(StrEnum):
    """How one tool call ended."""

    OK = "ok"
    ERROR = "error"  # the tool ran and failed (an exception, a traceback); the model reads why
    TIMEOUT = "timeout"  # the call missed its deadline
    REFUSED = "refused"  # never ran: malformed, unknown tool, invalid arguments, or no calls left
    UNAVAILABLE = "unavailable"  # infrastructure failure: the provider is down


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call as the policy wrote it. `error` says why a malformed call cannot run; otherwise it is empty."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    error: str = ""
    id: str = ""  # by which its result names it, where the policy wrote one
    mended: str = ""  # which slip of its text was read all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallResult:
    """The result of one call of a turn. `text` is the tool's full text, before it is cut to the token limit.

    Equality ignores where a result came from and what it cost: two equal trees may have waited for different things.
    """

    tool: str
    status: CallStatus
    text: str
    seconds: float = field(default=0.0, compare=False)  # duration of the tool's last attempt
    cut: bool = False  # True: the model saw only the beginning
    cached: bool = field(default=False, compare=False)  # from the cache, or from the record of an earlier run
    shared: bool = field(default=False, compare=False)  # the result of an equal call that was in flight
    fault: str = (
        ""  # why it failed: "raised TypeError", "told" (a ToolError), "reported" (a result), "deadline", "provider"
    )
    attempts: int = field(default=1, compare=False)  # more than 1 if the provider failed before
    cost: float = field(default=0.0, compare=False)  # money

    @property
    def answered(self) -> bool:
        """True if the tool ran, now or earlier: the call was neither refused nor was the provider unavailable."""
        return self.status in (CallStatus.OK, CallStatus.ERROR, CallStatus.TIMEOUT)

    @property
    def ran(self) -> bool:
        """True if the tool executed for this very call."""
        return self.answered and not self.cached and not self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    tokens: array[int]  # 'i'


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Tokens that the policy sampled in one request. Every array has one value per token (int32, float32, float32)."""

    place: Place
    role: Role
    tokens: array[int]  # 'i'
    logprobs: array[float]  # 'f', ln p of every token at the sampling temperature, from the engine that sampled it
    entropies: array[float]  # 'f', nats, temperature 1 (midpoint of the bounds if the engine reports an interval)
    bounds: tuple[array[float], array[float]] | None = None  # lower and upper entropies; None: exact
    versions: tuple[tuple[int, int], ...] = ()  # spans (weight version, number of tokens sampled with it), in order
    finish: FinishReason = FinishReason.STOP
    calls: tuple[Call, ...] = ()

    @property
    def parent(self) -> Place:
        return self.place[:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The results of all calls of the turn at `place`, with the template text that leads to the next turn.

    With `new_context` its tokens are a whole prompt, with which the branch goes on: turns below read nothing that
    stands before it.
    """

    place: Place  # of the turn that it answers
    tokens: array[int]  # 'i'
    outcomes: tuple[ToolCallResult, ...]  # in call order
    new_context: bool = False


Segment = Prompt | Turn | Observation


class RolloutTree:
    """An append-only tree. Two trees are equal if they hold the same segments and endings, whatever order they grew
    in."""

    __slots__ = ("_children", "endings", "observations", "prompt", "step", "task", "turns")

    def __init__(self, task: str, step: Step, prompt: Prompt) -> None:
        self.task, self.step, self.prompt = task, step, prompt
        self.turns: dict[Place, Turn] = {}
        self.observations: dict[Place, Observation] = {}
        self.endings: dict[Place, StopReason] = {}
        self._children: dict[Place, list[Place]] = {}  # sorted places of turns by parent; follows from `turns`

    def grow(self, segment: Turn | Observation) -> None:
        """Append a segment. Raises ValueError if its place is taken or its parent is missing."""
        place = segment.place
        if isinstance(segment, Turn):
            if not place:
                raise ValueError("a turn's place names at least its root: () is the prompt")
            if place in self.turns or place in self.endings:
                raise ValueError(f"the tree already has a turn {show(place)}")
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
        """Make the turn at `place` a leaf. A leaf whose turn the engine never wrote (ENGINE_FAILED) has only an
        ending."""
        if place in self.endings or place in self.observations:
            raise ValueError(f"turn {show(place)} already has an observation or an ending")
        if place not in self.turns:
            if not place or not ending.aborted:
                raise ValueError(f"there is no turn {show(place)} that could end as {ending}")
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
            if here not in self.turns:  # a leaf whose turn the engine never wrote
                return
            turn = self.turns[here]
            yield (turn,) if depth == len(place) else (turn, self.observations[here])

    def context(self, place: Place) -> array[int]:
        """Tokens before the next turn after `place`: the prompt of its context, and turns and observations from there
        up to the one at `place`."""
        start = self.contexts((*place, 0))[-1][0]
        tokens = array("i", self.opening(start))
        for depth in range(len(start) + 1, len(place) + 1):
            tokens.extend(self.turns[place[:depth]].tokens)
            tokens.extend(self.observations[place[:depth]].tokens)
        return tokens

    def contexts(self, place: Place) -> list[tuple[Place, Place]]:
        """The contexts on the path to the turn at `place`, first to last: where each starts (the place of an
        observation with `new_context`, or () for the prompt), and its last turn on this path."""
        inner = (place[:depth] for depth in range(1, len(place)))
        starts: list[Place] = [
            (),
            *(at for at in inner if at in self.observations and self.observations[at].new_context),
        ]
        return [*zip(starts, [*starts[1:], place], strict=True)]

    def opening(self, start: Place) -> array[int]:
        """The prompt of the context that starts at `start` (see `contexts`)."""
        return self.observations[start].tokens if start else self.prompt.tokens

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
    """Leaves of the planned roots' probe lines: root k, then the probe at every tip, without siblings and fills.

    They are what the policy would have written without branching, so means over them compare with GRPO's. A line that
    has not ended yet does not count.
    """
    return [leaf for leaf in tree.leaves() if leaf[0] < planned_roots and not any(leaf[1:])]


def on_probe_line(tree: RolloutTree, place: Place) -> bool:
    """Whether the turn at `place` is on the probe line of a planned root: what the policy writes whatever the rule is.

    Siblings and all that follows them are where the rule chose to branch, and how many fills a task has depends on it,
    so a figure over them is not the policy's alone.
    """
    root = tree.turns.get(place[:1])
    return root is not None and root.role is Role.ROOT and not any(place[1:])


def fork_weights(tree: RolloutTree, leaves: Iterable[Place] | None = None) -> dict[Place, float]:
    """Weight of every leaf: the product of 1 / number of children over the forks on its path. The weights sum to 1.

    Only children that lead to one of `leaves` (by default all finished leaves) count, so that a caller can leave out
    leaves without a score. A mean with these weights is still biased: the rule forks uncertain paths more often.
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
