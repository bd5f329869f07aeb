"""Rules that follow what earlier steps and turns have shown (docs/method.md, section 4).

Pure functions like those of `arpo.core.branching`: what they know stands in the step's statistics and in the tip.
"""

import math
from dataclasses import dataclass
from random import Random
from typing import Literal

from arpo.core.branching import Decision, Rule, StepStats, StrictKeys, Tip, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered(StrictKeys):
    """Branches at a wanted share of tips, whatever the scale of the entropy: where the head entropy's rank among known
    heads is in the upper share p. Those are the heads after tools of earlier steps and of this path, or its baseline.

    Along a line p steers itself: `clip(rate + gain * (rate * n - w), 0, 1)`, w branches wanted at its n tips so far.
    """

    rule: Literal["steered"] = "steered"
    rate: float = 0.5
    """The wanted share of tips."""
    gain: float = 0.5
    """How strongly a line makes up for what it branched too often or too seldom; 0: not."""
    window: int = 256
    """Past head entropies that are compared with."""
    siblings: int = 1
    """Z: the number of branches to start there."""

    def __post_init__(self) -> None:
        require(0 <= self.rate <= 1, "rate", self.rate, "from 0 to 1")
        require(0 <= self.gain < math.inf, "gain", self.gain, "at least 0 and finite")
        require(self.window >= 0, "window", self.window, "at least 0")
        require(self.siblings >= 1, "siblings", self.siblings, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        known = (*(stats.window[-self.window :] if self.window else ()), *tip.heads) or (tip.baseline,)
        share = min(max(self.rate + self.gain * (self.rate * len(tip.heads) - tip.wanted_on_path), 0.0), 1.0)

        def wanted(head: float) -> int:
            rank = (sum(h < head for h in known) + sum(h == head for h in known) / 2) / len(known)
            return self.siblings if share > 0 and rank >= 1 - share else 0

        terms = {"head": tip.head, "rise": tip.rise, "probability": share}
        count = wanted(tip.head)
        flips = not wanted(tip.head_low) == count == wanted(tip.head_high)
        return Decision(wanted=count, score=tip.head, terms=terms, flips=flips)

    def most(self, depth: int) -> int:
        return self.siblings if self.rate > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread(StrictKeys):
    """`rank` by what branching was worth: the score of a tip is the mean spread of outcomes at the `nearest` tips of
    earlier steps that branched, by depth, then by head entropy. While fewer are known, it is the rise.

    The spread at a tip is the standard deviation of its branches' mean rewards.
    """

    rule: Literal["spread"] = "spread"
    memory: int = 512
    """Past tips that are remembered."""
    nearest: int = 16
    """How many of them make a score."""

    def __post_init__(self) -> None:
        require(self.nearest >= 1, "nearest", self.nearest, "at least 1")
        require(self.memory >= self.nearest, "memory", self.memory, f"at least nearest ({self.nearest})")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        known = stats.outcomes[-self.memory :]
        score = tip.rise
        if len(known) >= self.nearest:
            near = sorted(known, key=lambda one: (abs(one[0] - tip.depth), abs(one[1] - tip.head)))[: self.nearest]
            score = math.fsum(spread for _, _, spread in near) / self.nearest
        return Decision(wanted=0, score=score, terms={"head": tip.head, "rise": tip.rise, "value": score})

    def most(self, depth: int) -> int:
        return 0


AnyRule = Rule | Steered | Spread
