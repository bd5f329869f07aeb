"""Branching rules decide how many siblings a tip wants and how urgently (docs/method.md, section 4).

A rule is a small pure function of a tip, the step's frozen statistics and a keyed `Random`. It sees neither the budget
nor any other tip. Every rule is a frozen dataclass whose field `rule` names it, so that `{rule: paper, tau: 0.6}` in a
recipe builds it.

A rule decides at the estimated entropies, and again at both of their bounds: `flips` is true where the three disagree.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Literal, Protocol, runtime_checkable

from arpo.core.place import Place, Step
from arpo.core.tree import CallStatus, Observation, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """The end of an observation, as a rule sees it once the head entropy of its probe is known. Entropies in nats."""

    place: Place  # of the observation
    head: float  # mean entropy of the probe's first k tokens
    head_low: float
    head_high: float  # bounds; equal to `head` if the engine reports exact entropies
    baseline: float  # head entropy of the first turn on this path
    baseline_low: float
    baseline_high: float
    heads: tuple[float, ...]  # head entropies at the earlier tips of this path, oldest first
    wanted_before: int  # consecutive tips just before this one where the rule wanted a branch, granted or not
    head_tokens: int  # k of the recipe
    vocab_size: int
    wanted_on_path: int = field(default=0, compare=False)  # earlier tips of it where the rule wanted a branch
    # What a record holds elsewhere:
    turn: Turn | None = field(default=None, compare=False)  # that made the calls
    text: str = field(default="", compare=False)  # of that turn, as the policy wrote it
    observation: Observation | None = field(default=None, compare=False)  # their results, as the policy reads them

    @property
    def statuses(self) -> tuple[CallStatus, ...]:
        """How the calls before this tip ended, in order."""
        return tuple(outcome.status for outcome in self.observation.outcomes) if self.observation else ()

    @property
    def result_tokens(self) -> int:
        """Tokens of the observation, template text included."""
        return len(self.observation.tokens) if self.observation else 0

    @property
    def result_chars(self) -> int:
        """Characters of all results, before they are cut to the token limit."""
        return sum(len(outcome.text) for outcome in self.observation.outcomes) if self.observation else 0

    @property
    def depth(self) -> int:
        """Number of observations on the path, this one included (1 = after the first tool result)."""
        return len(self.place)

    @property
    def rise(self) -> float:
        """`H_now - H_baseline`, nats per token."""
        return self.head - self.baseline

    @property
    def rises(self) -> tuple[float, float]:
        """The lowest and the highest rise that the bounds allow."""
        return self.head_low - self.baseline_high, self.head_high - self.baseline_low


Outcome = tuple[float, float, float]
"""(depth, head entropy, spread of outcomes) of a tip that branched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What a rule may know of earlier steps. It is frozen when a step starts."""

    step: Step
    window: tuple[float, ...] = ()  # the last W post-tool head entropies in canonical order
    outcomes: tuple[Outcome, ...] = ()  # the last W tips that branched, for the rule `spread`
    pass_rate: float | None = None  # the task's running accuracy; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a rule wants at a tip. `terms` explains it (for the record and the viewer)."""

    wanted: int
    score: float  # among tips of the same depth the one with the highest score is served first
    terms: Mapping[str, float] = field(default_factory=dict)
    flips: bool = False  # the bounds of the entropy lead to different decisions


@runtime_checkable
class BranchRule(Protocol):
    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision: ...

    def most(self, depth: int) -> int:
        """The maximum number of siblings that the rule wants at this depth; 0 if it never branches there.

        Called for depths up to `DEEPEST`.
        """
        ...


@runtime_checkable
class WindowedRule(BranchRule, Protocol):
    """A rule that looks back at the last `window` heads after tool results."""

    window: int


DEEPEST = 256  # no tip below this depth branches, so that "can this root still branch?" has an answer for every rule


class StrictKeys:
    """Base of the rules: pydantic refuses keys that a rule does not have."""

    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected} (got {value!r})")


def require_finite(rule: object, *names: str) -> None:
    for name in names:
        require(math.isfinite(getattr(rule, name)), name, getattr(rule, name), "a finite number")


def _by_rise(tip: Tip, wanted: Callable[[float], int], terms: Mapping[str, float]) -> Decision:
    """The decision of a rule that depends on the rise alone."""
    low, high = tip.rises
    count = wanted(tip.rise)
    terms = {"head": tip.head, "baseline": tip.baseline, "rise": tip.rise, "rise_low": low, "rise_high": high, **terms}
    return Decision(wanted=count, score=tip.rise, terms=terms, flips=not wanted(low) == count == wanted(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Never(StrictKeys):
    """Never branch: every leaf starts from the prompt, as in GRPO."""

    rule: Literal["none"] = "none"

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        return Decision(wanted=0, score=tip.rise, terms={"head": tip.head, "baseline": tip.baseline, "rise": tip.rise})

    def most(self, depth: int) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed(StrictKeys):
    """Fork every line at its j-th tool result, whatever the entropy. An ablation: prefix sharing alone."""

    rule: Literal["fixed"] = "fixed"
    at: int = 1
    """j: the tool result at which to fork (1: the first)."""
    siblings: int = 1
    """Z: the number of branches to start there."""

    def __post_init__(self) -> None:
        require(1 <= self.at <= DEEPEST, "at", self.at, f"from 1 to {DEEPEST}")
        require(self.siblings >= 1, "siblings", self.siblings, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        return Decision(wanted=self.most(tip.depth), score=random.random(), terms={"head": tip.head, "rise": tip.rise})

    def most(self, depth: int) -> int:
        return self.siblings if depth == self.at else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance(StrictKeys):
    """Branch with a fixed probability: ARPO without entropy.

    `rates` can be the rates at which another run wanted to branch, by depth, so that only the choice of tips differs.
    """

    rule: Literal["random"] = "random"
    rates: tuple[float, ...] = (0.5,)
    """p_d: the probability at depth d = 1, 2, ...; the last one also applies below."""
    siblings: int = 1
    """Z: the number of branches to start where the draw succeeds."""

    def __post_init__(self) -> None:
        require(
            len(self.rates) > 0 and all(0 <= p <= 1 for p in self.rates),
            "rates",
            self.rates,
            "one or more probabilities",
        )
        require(self.siblings >= 1, "siblings", self.siblings, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        score, draw, rate = random.random(), random.random(), self._rate(tip.depth)
        terms = {"head": tip.head, "rise": tip.rise, "probability": rate, "draw": draw}
        return Decision(wanted=self.siblings if draw < rate else 0, score=score, terms=terms)

    def most(self, depth: int) -> int:
        return self.siblings if self._rate(depth) > 0 else 0

    def _rate(self, depth: int) -> float:
        return self.rates[min(depth, len(self.rates)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper(StrictKeys):
    """ARPO's rule (arXiv 2507.19849, eq. 4): `P = alpha + beta * rise / ln V`; Z branches iff `P > tau`.

    With alpha = tau, as in the paper, the sign of the rise alone decides.
    """

    rule: Literal["paper"] = "paper"
    alpha: float = 0.5
    """Base probability."""
    beta: float = 0.2
    """Weight of the rise."""
    tau: float = 0.5
    """Threshold: branch where P is above it."""
    siblings: int = 1
    """Z: the number of branches to start there."""

    def __post_init__(self) -> None:
        require_finite(self, "alpha", "beta", "tau")
        require(self.beta >= 0, "beta", self.beta, "at least 0")
        require(self.siblings >= 1, "siblings", self.siblings, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        scale = self.beta / math.log(tip.vocab_size)

        def wanted(rise: float) -> int:
            # not `alpha + scale * rise > tau`: adding a small rise to alpha would round away its sign
            return self.siblings if scale * rise > self.tau - self.alpha else 0

        return _by_rise(tip, wanted, {"probability": self.alpha + scale * tip.rise, "tau": self.tau})

    def most(self, depth: int) -> int:
        return self.siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(StrictKeys):
    """The rule of the released ARPO code: Z draws, each true with probability `clip(b + w * rise', 0, 1)`, where
    rise' = k * rise / ln V.

    This keeps the formula (which scales as a sum over k tokens) and leaves out the defects around it.
    """

    rule: Literal["released"] = "released"
    base: float = 0.5
    """b: base probability."""
    weight: float = 0.2
    """w: weight of the scaled rise (0.4 did best in the paper)."""
    draws: int = 1
    """Z: number of draws."""

    def __post_init__(self) -> None:
        require_finite(self, "base", "weight")
        require(self.weight >= 0, "weight", self.weight, "at least 0")
        require(self.draws >= 1, "draws", self.draws, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        scale = self.weight * tip.head_tokens / math.log(tip.vocab_size)
        draws = [random.random() for _ in range(self.draws)]  # the same draws at both bounds

        def wanted(rise: float) -> int:
            return sum(draw < self.base + scale * rise for draw in draws)

        probability = min(1.0, max(0.0, self.base + scale * tip.rise))
        return _by_rise(tip, wanted, {"probability": probability, "draw": min(draws)})

    def most(self, depth: int) -> int:
        return self.draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(StrictKeys):
    """`min(floor(H / theta), max)` branches where the head entropy H itself, not its rise, is above theta.

    With `window` W > 0 theta adapts: it is the mean plus `deviations` standard deviations of the last W post-tool head
    entropies of earlier steps (`StepStats.window`). Until there are any, the fixed theta applies. A fixed theta <= 0
    means the maximum; one that adapts is exceeded or not, like any other.
    """

    rule: Literal["threshold"] = "threshold"
    theta: float = 0.5
    """Nats per token."""
    deviations: float = 1.0
    """lambda: number of standard deviations above the mean, if theta adapts."""
    window: int = 0
    """W: number of past head entropies that set theta; 0: theta is fixed."""
    max_siblings: int = 4
    """Maximum number of branches to start at one tip."""

    def __post_init__(self) -> None:
        require_finite(self, "theta", "deviations")
        require(self.window >= 0, "window", self.window, "at least 0")
        require(self.max_siblings >= 1, "max_siblings", self.max_siblings, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        theta = self.theta_for(stats)
        adaptive = bool(self.window and stats.window)
        count, low, high = (
            self._wanted(head, theta, adaptive=adaptive) for head in (tip.head, tip.head_low, tip.head_high)
        )
        flips = not low == count == high
        terms = {
            "head": tip.head,
            "head_low": tip.head_low,
            "head_high": tip.head_high,
            "rise": tip.rise,
            "theta": theta,
        }
        return Decision(wanted=count, score=tip.head, terms=terms, flips=flips)

    def most(self, depth: int) -> int:
        return self.max_siblings

    def theta_for(self, stats: StepStats) -> float:
        """The threshold of a step, in nats."""
        heads = stats.window[-self.window :] if self.window else ()
        if not heads:
            return self.theta
        mean = math.fsum(heads) / len(heads)
        return mean + self.deviations * math.sqrt(math.fsum((h - mean) ** 2 for h in heads) / len(heads))

    def _wanted(self, head: float, theta: float, *, adaptive: bool) -> int:
        if theta <= 0 and (head > theta or not adaptive):
            return self.max_siblings
        return int(min(head / theta, self.max_siblings)) if head > theta else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Aepo(StrictKeys):
    """AEPO's rule (arXiv 2510.14545): `P = (alpha + gamma * rise) * (1 - slope * l)`; Z branches iff `P > tau`.

    l counts the consecutive tips just before this one on the path at which the rule wanted a branch. (The released AEPO
    code compares P with a random number instead.)
    """

    rule: Literal["aepo"] = "aepo"
    alpha: float = 0.5
    """Base probability."""
    gamma: float = 0.2
    """Weight of the rise."""
    slope: float = 0.05
    """Penalty for each consecutive branch."""
    tau: float = 0.5
    """Threshold: branch where P is above it."""
    siblings: int = 1
    """Z: the number of branches to start there."""

    def __post_init__(self) -> None:
        require_finite(self, "alpha", "gamma", "tau", "slope")
        require(self.gamma >= 0, "gamma", self.gamma, "at least 0")
        require(0 <= self.slope <= 1, "slope", self.slope, "from 0 to 1")
        require(self.siblings >= 1, "siblings", self.siblings, "at least 1")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        keep = max(0.0, 1.0 - self.slope * tip.wanted_before)  # a long run of branches must not flip the sign of P

        def wanted(rise: float) -> int:
            if keep == 1.0:  # as in Paper: the sign of a small rise must survive
                return self.siblings if self.gamma * rise > self.tau - self.alpha else 0
            return self.siblings if (self.alpha + self.gamma * rise) * keep > self.tau else 0

        probability = (self.alpha + self.gamma * tip.rise) * keep
        return _by_rise(
            tip, wanted, {"probability": probability, "tau": self.tau, "consecutive": float(tip.wanted_before)}
        )

    def most(self, depth: int) -> int:
        return self.siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank(StrictKeys):
    """No threshold: wants nothing while the planned roots grow, and scores their tips. The budget then goes to the tips
    of the whole tree with the highest scores (`rollout.leftover: tips`)."""

    rule: Literal["rank"] = "rank"
    by: Literal["rise", "head"] = "rise"
    """The score: the rise, or the head entropy itself."""
    deeper: float = 0.0
    """Nats that each tool result on the path adds to the score; below 0 early tips come first."""

    def __post_init__(self) -> None:
        require_finite(self, "deeper")

    def __call__(self, tip: Tip, stats: StepStats, random: Random) -> Decision:
        terms = {"head": tip.head, "baseline": tip.baseline, "rise": tip.rise}
        score = (tip.rise if self.by == "rise" else tip.head) + self.deeper * tip.depth
        return Decision(wanted=0, score=score, terms=terms)

    def most(self, depth: int) -> int:
        return 0


Rule = Never | Fixed | Chance | Paper | Released | Threshold | Aepo | Rank
