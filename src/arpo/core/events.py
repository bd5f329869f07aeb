"""What an expansion asks of its driver (commands) and what the driver reports (events). Values only."""

from __future__ import annotations  # `array[float]` cannot be subscripted before Python 3.12

from array import array
from dataclasses import dataclass, field

from arpo.core.branching import Decision
from arpo.core.place import Place
from arpo.core.tree import Call, Observation, Role, StopReason, Turn


# --- commands: what the driver is asked to do
@dataclass(frozen=True, slots=True)
class SampleTurn:
    """Sample the turn at `place`; its context is `tree.context(place[:-1])`. `attempt` counts from 0 and keys the seed."""

    place: Place
    role: Role
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class RunCalls:
    """Run the calls of the turn at `place` and report `Returned`. `attempt` counts from 0: calls that the world broke run again."""

    place: Place
    calls: tuple[Call, ...]
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision at the tip `place` is final: `granted` siblings start (their `Sample`s follow). A captured tool state may be
    forked now, or dropped when `granted` is 0."""

    place: Place
    decision: Decision
    granted: int
    waited: bool = field(default=False, compare=False)  # could not be made at once: a matter of timing, like a call's seconds


Command = SampleTurn | RunCalls | Decided


# --- events: what the driver reports
@dataclass(frozen=True, slots=True)
class HeadKnown:
    """The first k tokens of the turn at `place` are there (fewer if the turn ended earlier). Needed for probes alone: a tip is
    judged by the first head reported of its probe, or by the finished probe where none was."""

    place: Place
    entropies: array[float]
    bounds: tuple[array[float], array[float]] | None = None


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The turn is complete. `ending` is None exactly when the turn's calls are to be run."""

    turn: Turn
    ending: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """All calls of a turn have outcomes. `ending`: the branch ends right after this observation is known not to be continued
    (token limit), in which case the observation is not grown and the turn at its place becomes the leaf."""

    observation: Observation
    ending: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The world failed while the turn at `place` was sampled (ENGINE_FAILED) or its calls ran (TOOL_FAILED)."""

    place: Place
    ending: StopReason


Event = HeadKnown | TurnEnded | Returned | Failed
