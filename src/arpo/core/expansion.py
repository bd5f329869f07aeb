"""Grows one tree as a state machine without I/O: events in, commands out (docs/method.md, section 4).

`Expansion` decides what happens next; a driver carries it out and reports back. The rules:

- Every `SampleTurn` leads to exactly one `TurnEnded` or `Failed`; every `RunCalls` to one `Returned` or `Failed`.
- Only `Decided.waited` and the order of commands depend on the order in which events of different lines arrive.
- The rule judges a tip once the head of its probe is known, from that head and the earlier heads on its path alone.
- Every tip gets exactly one `Decided`; only a granted sibling or a root adds a line.
- What is left of the budget starts at the prompt or, with `leftover: tips`, at the tips with the highest scores.

Refuses to know what tokens mean, tools, time and how a seed reaches an engine.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from arpo.core.branching import DEEPEST, BranchRule, Decision, StepStats, Tip
from arpo.core.budget import Budget, Want
from arpo.core.entropy import head_entropy
from arpo.core.events import Command, Decided, Event, Failed, HeadKnown, Returned, RunCalls, SampleTurn, TurnEnded
from arpo.core.place import Place, keyed, show
from arpo.core.roots import Constant, Pilot
from arpo.core.tree import FOR_GOOD, Observation, Role, RolloutTree, StopReason, Turn
from arpo.errors import ConfigError

__all__ = [
    "Command",
    "Decided",
    "Event",
    "Expansion",
    "ExpansionConfig",
    "Failed",
    "HeadKnown",
    "Returned",
    "RunCalls",
    "SampleTurn",
    "TipDecision",
    "TurnEnded",
]

Leftover: TypeAlias = Literal["prompt", "tips"]


@dataclass(frozen=True, slots=True)
class TipDecision:
    """A tip and the decision on it. `tip` is None if its probe failed for good before its head was known."""

    tip: Tip | None
    decided: Decided


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpansionConfig:
    """How a tree grows. Together with its events it determines the tree. Raises ConfigError for numbers that do not fit
    together."""

    leaves: int
    """M: total number of leaves."""
    roots: int | Pilot
    """N, or the plan that computes it."""
    rule: BranchRule
    head: int
    """k: number of tokens whose mean entropy is the head entropy."""
    vocab_size: int
    stats: StepStats
    seed: int
    root_cap: int | None = None
    """Maximum number of leaves of one planned root; None: `min(M, max(2, ceil(1.5 M / N)))`."""
    retries: int = 1
    """How often a turn, or the calls of a turn, run again after an infrastructure failure."""
    deepest: int = DEEPEST
    """Maximum number of observations on a path, from the call limit. A line past its last tip cannot use what is left
    of the budget, so other tips need not wait for it."""
    leftover: Leftover = "prompt"
    """Where leaves start that no tip's decision has used: at the `prompt`, as soon as no root can use them (fills), or,
    once every line of the planned roots has ended, at the `tips` with the highest scores (and at the prompt where there
    is none)."""

    def __post_init__(self) -> None:
        if self.leaves < 1:
            raise ConfigError("a tree has at least one leaf", where="leaves", value=self.leaves)
        if isinstance(self.roots, int) and not 1 <= self.roots <= self.leaves:
            raise ConfigError(
                "every root is a leaf", where="roots", value=self.roots, hint=f"from 1 to {self.leaves} (leaves)"
            )
        if self.head < 1:
            raise ConfigError("a head has at least one token", where="head", value=self.head)
        if self.vocab_size < 2:
            raise ConfigError("a vocabulary has at least two tokens", where="vocab_size", value=self.vocab_size)
        if self.root_cap is not None and self.root_cap < 1:
            raise ConfigError("a root has at least one leaf", where="root_cap", value=self.root_cap)
        if self.retries < 0:
            raise ConfigError("retries cannot be negative", where="retries", value=self.retries)
        if self.leftover not in get_args(Leftover):
            raise ConfigError("leaves start at the prompt or at tips", where="leftover", value=self.leftover)
        if self.deepest < 0:
            raise ConfigError("the maximum depth cannot be negative", where="deepest", value=self.deepest)

    def cap(self, roots: int) -> int:
        """The maximum number of leaves of one root, if there are `roots` planned roots."""
        if self.root_cap is not None:
            return min(self.leaves, self.root_cap)
        return min(self.leaves, max(2, math.ceil(1.5 * self.leaves / roots)))

    def most(self, depth: int) -> int:
        """The maximum number of siblings of a tip at this depth."""
        return self.rule.most(depth) if depth <= DEEPEST else 0


class Expansion:
    """Grows `tree`: call `start()`, then `feed(event)` for every event until `done`. Both return the commands to carry
    out now.

    `feed` raises ValueError for an event that answers no command: the driver's mistake, never a model's or a tool's.
    """

    def __init__(
        self,
        tree: RolloutTree,
        *,
        leaves: int,
        roots: int | Constant | Pilot,
        rule: BranchRule,
        head: int,
        vocab_size: int,
        stats: StepStats,
        seed: int,
        root_cap: int | None = None,
        retries: int = 1,
        deepest: int = DEEPEST,
        leftover: Leftover = "prompt",
    ) -> None:
        self.tree = tree
        self.config = ExpansionConfig(
            leaves=leaves,
            roots=roots.roots if isinstance(roots, Constant) else roots,
            rule=rule,
            head=head,
            vocab_size=vocab_size,
            stats=stats,
            seed=seed,
            root_cap=root_cap,
            retries=retries,
            deepest=deepest,
            leftover=leftover,
        )
        self.text_of: Callable[[Place], str] = lambda place: ""  # of a turn, for rules that read
        self.events: list[Event] = []  # as they arrived, for the record
        self.decisions: dict[Place, TipDecision] = {}  # final decisions, for tips below planned roots
        self.fills: list[Place] = []  # first turns that use left-over budget
        self.planned_roots: int | None = None  # N; None while the pilot runs
        self._budget: Budget | None = None  # None until N is known
        self._judged: dict[Place, tuple[Tip | None, Decision]] = {}  # by tip
        self._sampling: dict[Place, Role] = {}
        self._calling: set[Place] = set()
        self._attempts: dict[Place, int] = {}
        # With `leftover: tips`, tips without siblings keep their decisions open until what is left is shared out.
        self._unshared: list[Place] | None = [] if leftover == "tips" else None

    @classmethod
    def from_config(cls, tree: RolloutTree, config: ExpansionConfig) -> Expansion:
        """An expansion of a tree that holds only its prompt."""
        return cls(tree, **{field.name: getattr(config, field.name) for field in fields(config)})

    @property
    def rule(self) -> BranchRule:
        return self.config.rule

    @property
    def done(self) -> bool:
        """True when the tree has all its leaves."""
        return len(self.tree.endings) == self.config.leaves

    @property
    def num_branches(self) -> int:
        """Siblings granted so far."""
        return sum(decision.decided.granted for decision in self.decisions.values())

    def start(self) -> list[Command]:
        """The first commands: sample the planned roots, or the pilot alone."""
        if self._sampling or self.tree.turns or self.tree.endings:
            raise ValueError("an expansion starts once, from a tree that holds only its prompt")
        if isinstance(self.config.roots, Pilot):
            return [self._sample((0,), Role.ROOT)]
        self._plan(self.config.roots, started=0)
        return [*(self._sample((root,), Role.ROOT) for root in range(self.config.roots)), *self._settle(None)]

    def feed(self, event: Event) -> list[Command]:
        """Process an event. Returns the commands to carry out now."""
        commands: list[Command] = []
        fresh: Place | None = None  # the tip that this event made known
        match event:
            case HeadKnown(place, entropies, bounds):
                self._expect(place, place in self._sampling, "is not being sampled")
                fresh = self._judge(place, entropies, bounds)
            case TurnEnded(turn, ending):
                fresh = self._turn_ended(turn, ending, commands)
            case Returned(observation, ending):
                self._returned(observation, ending, commands)
            case Failed(place, ending):
                fresh = self._failed(place, ending, commands)
        self.events.append(event)
        commands += self._settle(fresh)
        return commands

    # --- events

    def _turn_ended(self, turn: Turn, ending: StopReason | None, commands: list[Command]) -> Place | None:
        place = turn.place
        self._expect(place, place in self._sampling, "is not being sampled")
        self._expect(
            place, turn.role is self._sampling[place], f"should be a {self._sampling[place]}, not a {turn.role}"
        )
        fresh = self._judge(place, turn.entropies, turn.bounds)
        self.tree.grow(turn)
        del self._sampling[place]
        self._attempts.pop(place, None)
        if ending is None:
            self._calling.add(place)
            commands.append(RunCalls(place, turn.calls))
        else:
            self._end(place, ending, next_depth=len(place))
        return fresh

    def _returned(self, observation: Observation, ending: StopReason | None, commands: list[Command]) -> None:
        place = observation.place
        self._expect(place, place in self._calling, "has no calls running")
        self._expect(
            place, ending is not None or len(place) <= self.config.deepest, f"lies below depth {self.config.deepest}"
        )
        self._calling.remove(place)
        self._attempts.pop(place, None)
        if ending is not None:
            self._end(place, ending, next_depth=len(place))
            return
        self.tree.grow(observation)
        commands.append(self._sample((*place, 0), Role.PROBE))
        if self._is_fill(place):
            commands.append(Decided(place, Decision(wanted=0, score=0.0), 0))

    def _failed(self, place: Place, ending: StopReason, commands: list[Command]) -> Place | None:
        self._expect(
            place, place in self._sampling or place in self._calling, "is neither being sampled nor has calls running"
        )
        self._expect(place, ending.aborted, f"cannot fail as {ending}")
        attempt = self._attempts.get(place, 0) + 1
        if attempt <= self.config.retries and ending not in FOR_GOOD:
            self._attempts[place] = attempt
            if place in self._sampling:
                commands.append(SampleTurn(place, self._sampling[place], attempt))
            else:
                commands.append(RunCalls(place, self.tree.turns[place].calls, attempt))
            return None
        if place in self._calling:
            self._calling.remove(place)
            self._end(place, ending, next_depth=len(place))
            return None
        role, tip = self._sampling.pop(place), place[:-1]
        headless = role is Role.PROBE and tip not in self._judged
        self._end(place, ending, next_depth=len(tip) if headless else len(place))
        if not headless or self._is_fill(place):
            return None
        self._hold(tip, None, Decision(wanted=0, score=0.0))  # nothing is known about this tip, so it wants nothing
        return tip

    # --- judging tips

    def _judge(
        self, place: Place, entropies: Sequence[float], bounds: tuple[array[float], array[float]] | None
    ) -> Place | None:
        """Apply the rule to the tip before the probe at `place`, whose head is known. Returns the tip, if there is one
        to judge."""
        tip_place = place[:-1]
        if self._sampling[place] is not Role.PROBE or tip_place in self._judged or self._is_fill(place):
            return None
        tip = self._tip(tip_place, entropies, bounds)
        decision, most = Decision(wanted=0, score=0.0), self.config.most(tip.depth)
        if tip.depth <= DEEPEST:
            random = keyed(self.config.seed, self.tree.step, self.tree.task, tip_place, "branch")
            decision = self.rule(tip, self.config.stats, random)
        if not 0 <= decision.wanted <= most or not math.isfinite(decision.score):
            raise ValueError(
                f"rule {self.rule!r} wants {decision.wanted} siblings with score {decision.score} at "
                f"{show(tip_place)}; it may want 0 to most({tip.depth}) = {most}, with a finite score"
            )
        if self._budget is not None:
            self._budget.reach(tip_place)
        self._hold(tip_place, tip, decision)
        return tip_place

    def _tip(self, place: Place, entropies: Sequence[float], bounds: tuple[array[float], array[float]] | None) -> Tip:
        k, root = self.config.head, self.tree.turns[place[:1]]
        low, high = bounds or (entropies, entropies)
        root_low, root_high = root.bounds or (root.entropies, root.entropies)
        before = [self._judged[place[:depth]] for depth in range(1, len(place))]
        wanted_before = 0
        for _, decision in reversed(before):
            if not decision.wanted:
                break
            wanted_before += 1
        return Tip(
            place=place,
            head=head_entropy(entropies, k),
            head_low=head_entropy(low, k),
            head_high=head_entropy(high, k),
            baseline=head_entropy(root.entropies, k),
            baseline_low=head_entropy(root_low, k),
            baseline_high=head_entropy(root_high, k),
            heads=tuple(tip.head for tip, _ in before if tip is not None),
            wanted_before=wanted_before,
            head_tokens=k,
            vocab_size=self.config.vocab_size,
            wanted_on_path=sum(decision.wanted > 0 for _, decision in before),
            turn=self.tree.turns[place],
            text=self.text_of(place),
            observation=self.tree.observations[place],
        )

    def _hold(self, place: Place, tip: Tip | None, decision: Decision) -> None:
        self._judged[place] = (tip, decision)
        if self._budget is not None:
            self._budget.hold(Want(place, decision.wanted, decision.score))

    # --- lines and budget

    def _plan(self, roots: int, started: int) -> None:
        """Set N and create the budget. `started` roots have already run (the pilot)."""
        self.planned_roots = roots
        config = self.config
        self._budget = Budget(
            leaves=config.leaves, roots=roots, root_cap=config.cap(roots), most=config.most, deepest=config.deepest
        )
        for root in range(started, roots):
            self._budget.start_line(root, 1)

    def _settle(self, fresh: Place | None) -> list[Command]:
        """The commands that follow from what is known: the other roots once the pilot has ended, final decisions,
        fills."""
        commands: list[Command] = []
        if self._budget is None:
            if self._sampling or self._calling:
                return commands
            self._plan_by_pilot(commands)
        assert self._budget is not None and self.planned_roots is not None
        for place, count in self._budget.settle():
            if self._unshared is not None and not count and self._judged[place][0] is not None:
                self._unshared.append(place)
            else:
                commands += self._decide(place, count, waited=place != fresh)
        if self._unshared is not None:
            if self._sampling or self._calling:
                return commands
            tips = [(self._judged[place][1].score, place) for place in self._unshared]
            self._unshared = None  # what grows from here on decides at once, and finds the budget spent
            for place, count in self._budget.share_rest(tips).items():
                commands += self._decide(place, count, waited=place != fresh)
        for _ in range(self._budget.take_excess()):
            place = (self.planned_roots + len(self.fills),)
            self.fills.append(place)
            commands.append(self._sample(place, Role.FILL))
        return commands

    def _decide(self, place: Place, count: int, *, waited: bool) -> list[Command]:
        tip, decision = self._judged[place]
        decided = Decided(place, decision, count, waited=waited)
        self.decisions[place] = TipDecision(tip, decided)
        return [decided, *(self._sample((*place, child), Role.SIBLING) for child in range(1, count + 1))]

    def _plan_by_pilot(self, commands: list[Command]) -> None:
        plan, k = self.config.roots, self.config.head
        assert isinstance(plan, Pilot)
        heads = tuple(tip.head for tip, _ in self._judged.values() if tip is not None)
        root_head = head_entropy(self.tree.turns[0,].entropies, k) if heads else 0.0
        self._plan(plan.roots(self.config.leaves, root_head, heads), started=1)
        assert self._budget is not None and self.planned_roots is not None
        for place, (_, decision) in self._judged.items():
            self._budget.hold(Want(place, decision.wanted, decision.score))
        commands += (self._sample((root,), Role.ROOT) for root in range(1, self.planned_roots))

    def _sample(self, place: Place, role: Role) -> SampleTurn:
        self._sampling[place] = role
        return SampleTurn(place, role)

    def _end(self, place: Place, ending: StopReason, next_depth: int) -> None:
        """End the line at `place`, before its tip at `next_depth`."""
        self.tree.end(place, ending)
        if self._budget is not None and not self._is_fill(place):
            self._budget.stop_line(place[0], next_depth)

    def _is_fill(self, place: Place) -> bool:
        return self.planned_roots is not None and place[0] >= self.planned_roots

    def _expect(self, place: Place, condition: bool, problem: str) -> None:
        if not condition:
            raise ValueError(f"turn {show(place)} {problem}")
