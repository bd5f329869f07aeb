"""Branching rules: given a tip, how many siblings are wanted and how urgently (algorithm section 4).

A rule is a small pure function of a tip, the step's frozen statistics and a keyed `Random`. It sees neither budget nor other tips.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from arpo.core.place import Place, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """The end of an observation, seen when the head of its probe is known. Entropies in nats."""

    place: Place  # of the observation
    head: float  # mean entropy of the probe's first k tokens
    head_low: float
    head_high: float  # bounds; equal to `head` where the engine is exact
    baseline: float  # head entropy of the first turn on this path
    baseline_low: float
    baseline_high: float
    heads: tuple[float, ...]  # heads at the earlier tips of this path, oldest first
    wanted_before: int  # consecutive tips just before this one where the rule wanted a branch, granted or not
    head_tokens: int  # k of the recipe
    vocab_size: int

    @property
    def depth(self) -> int:
        """Number of observations on the path, this one included (1 = after the first tool result)."""
        return len(self.place)

    @property
    def rise(self) -> float:
        """`H_now - H_baseline`, nats per token."""
        return self.head - self.baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What a rule may know of earlier steps: frozen when a step starts."""

    step: Step
    window: tuple[float, ...] = ()  # the last W post-tool heads in canonical order


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a rule wants at a tip. `terms` explains it (for the record and the viewer)."""

    wanted: int
    score: float  # the higher, the earlier it is served among tips of the same depth
    terms: Mapping[str, float] = field(default_factory=dict)
    flips: bool = False  # would differ between the bounds of the entropy interval


class BranchRule(Protocol):
    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision: ...

    def most(self, depth: int) -> int:
        """The most siblings ever wanted at this depth; 0: never branches there."""
        ...
