"""Commands that an expansion gives its driver, and events that the driver reports back. Values only."""

from __future__ import annotations  # `array[float]` cannot be subscripted before Python 3.12

from array import array
from dataclasses import dataclass, field

from arpo.core.branching import Decision
from arpo.core.place import Place
from arpo.core.tree import Call, Observation, Role, StopReason, Turn


# --- commands: what the driver does
@dataclass(frozen=True, slots=True)
class SampleTurn:
    """Sample the turn at `place`; its context is `tree.context(place[:-1])`. `attempt` counts from 0 and keys the
    seed."""

    place: Place
    role: Role
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class RunCalls:
    """Run the calls of the turn at `place` (none, where an environment answers its text) and report `Returned`.
    `attempt` counts from 0: calls run again after an infrastructure failure."""

    place: Place
    calls: tuple[Call, ...]
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision at the tip `place` is final: `granted` siblings start (their `SampleTurn`s follow). The driver may
    now fork a captured tool state, or drop it if `granted` is 0."""

    place: Place
    decision: Decision
    granted: int
    waited: bool = field(default=False, compare=False)  # not final at once; depends on timing, like a call's seconds


Command = SampleTurn | RunCalls | Decided


# --- events: what the driver reports
@dataclass(frozen=True, slots=True)
class HeadKnown:
    """The first k tokens of the turn at `place` exist (fewer if the turn ended earlier). Only probes need this event:
    the rule judges a tip by the first head reported for its probe, or by the finished probe if none was reported."""

    place: Place
    entropies: array[float]
    bounds: tuple[array[float], array[float]] | None = None


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The turn is complete. `ending` is None if and only if something comes back for it: results of its calls, or what
    an environment says."""

    turn: Turn
    ending: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """All calls of a turn have results, and its environment has spoken. With an `ending` the branch cannot continue
    after this observation: the tree does not take it, and the turn at its place becomes the leaf."""

    observation: Observation
    ending: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Infrastructure failed while the turn at `place` was sampled (ENGINE_FAILED) or its calls ran (TOOL_FAILED)."""

    place: Place
    ending: StopReason


Event = HeadKnown | TurnEnded | Returned | Failed
