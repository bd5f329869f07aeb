"""The critical path of a finished tree: when each of its turns could have begun, had nothing waited but for what it
depends on.

Every turn and call is a node that takes its own time. A turn waits for the result before it; a sibling waits for its
tip's decision; a decision waits until no outcome of what is still open could change it; a fill waits until the planned
roots can certainly not use its leaf. Those two are found here by serving the budget twice, as if everything open wanted
nothing and as if it wanted the most: a slow twin of `arpo.core.budget`, which shares no code with it.

Knows finished trees and durations. Refuses to know the clock, asyncio and who waited for what in reality.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from arpo.core import Expansion, Place, RolloutTree
from arpo.core.tree import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds by turn: until it has ended, until its head is known, and of the calls that follow it."""

    turn: Callable[[Place], float]
    head: Callable[[Place], float]
    calls: Callable[[Place], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """`seconds`: from the start to the last leaf. `free`: the same if every decision and fill were known beforehand."""

    seconds: float
    free: float
    waits: Mapping[Place, float]  # by tip: from its own head to the decision
    fills: Mapping[Place, float]  # by fill: when it could start
    last: Place  # the leaf that ends last


def critical_path(expansion: Expansion, durations: Durations, deepest: int) -> CriticalPath:
    """Of a tree that has grown without failures of the world. `deepest`: most observations on a path."""
    return _Walk(expansion, durations, deepest).run()


class _Walk:
    def __init__(self, expansion: Expansion, durations: Durations, deepest: int) -> None:
        self.tree: RolloutTree = expansion.tree
        self.durations, self.deepest, self.most = durations, deepest, expansion.rule.most
        assert expansion.planned_roots is not None and expansion.config.roots == expansion.planned_roots
        self.roots, self.leaves = expansion.planned_roots, expansion.config.leaves
        self.cap = expansion.config.cap(self.roots)
        made = {place: found.decided for place, found in expansion.decisions.items()}
        self.wants = {place: (d.decision.wanted, d.decision.score) for place, d in made.items()}
        self.granted = {place: d.granted for place, d in made.items()}
        self.to_fill = sorted(place for place, turn in self.tree.turns.items() if turn.role is Role.FILL)
        self.known: dict[Place, float] = {}  # tips by the second of their head
        self.decided: dict[Place, float] = {}
        self.fills: dict[Place, float] = {}
        self.lines = [Counter({1: 1}) for _ in range(self.roots)]
        self.agenda: list[tuple[float, int, str, Place]] = []
        self.order = count()

    def run(self) -> CriticalPath:
        last, end = (), 0.0
        for root in range(self.roots):
            self.begin((root,), 0.0)
        self.decide(0.0)
        while self.agenda:
            now, _, what, place = heapq.heappop(self.agenda)
            if what == "head":
                self.head(place[:-1], now)
            elif what == "turn" and place in self.tree.observations:
                self.at(now + self.durations.calls(place), "result", place)
            elif what == "result":
                self.begin((*place, 0), now)
            else:
                last, end = place, max(end, now)
                if place[0] < self.roots:
                    self.move(place[0], len(place), None)
            self.decide(now)
        return CriticalPath(
            seconds=end,
            free=max(self._chain(leaf) for leaf in self.tree.leaves()),
            waits={place: self.decided[place] - known for place, known in self.known.items()},
            fills=self.fills,
            last=last,
        )

    def at(self, when: float, what: str, place: Place) -> None:
        heapq.heappush(self.agenda, (when, next(self.order), what, place))

    def begin(self, place: Place, now: float) -> None:
        if self.tree.turns[place].role is Role.PROBE and place[0] < self.roots:
            self.at(now + self.durations.head(place), "head", place)
        self.at(now + self.durations.turn(place), "turn", place)

    def head(self, tip: Place, now: float) -> None:
        self.known[tip] = now
        self.move(tip[0], len(tip), len(tip) + 1)

    def move(self, root: int, depth: int, to: int | None) -> None:
        self.lines[root] -= Counter({depth: 1})
        if to is not None:
            self.lines[root][to] += 1

    def decide(self, now: float) -> None:
        """Everything that is certain by now."""
        settled = True
        while settled:
            settled = False
            for tip in sorted(self.known.keys() - self.decided.keys(), key=self._key):
                got = self.serve(tip, worst=False)[0]
                if got != self.serve(tip, worst=True)[0]:
                    continue
                assert got == self.granted[tip], (
                    f"tip {tip} of {self.tree.task}: {self.granted[tip]} granted, {got} here"
                )
                self.decided[tip] = now
                self.lines[tip[0]][len(tip) + 1] += got
                for child in range(1, got + 1):
                    self.begin((*tip, child), now)
                settled = True
        certain = self.serve(None, worst=True)[1]
        for place in self.to_fill[len(self.fills) : certain]:
            self.fills[place] = now
            self.begin(place, now)

    def serve(self, until: Place | None, *, worst: bool) -> tuple[int, int]:
        """Serve the budget in canonical order, depth by depth: (what the tip `until` gets, leaves left over).

        What is not known yet wants nothing, or in the `worst` case the most it can, and comes first among its depth.
        """
        left, room = self.leaves - self.roots, [self.cap - 1] * self.roots
        open_lines = [Counter(lines) if worst else Counter() for lines in self.lines]
        for depth in range(1, self.deepest + 1):
            for root, lines in enumerate(open_lines):
                got = min(lines[depth] * self.most(depth), left, room[root])
                left, room[root] = left - got, room[root] - got
                lines[depth + 1] += lines[depth] + got
            for tip in sorted((tip for tip in self.known if len(tip) == depth), key=self._key):
                got = min(self.wants[tip][0], left, room[tip[0]])
                if tip == until:
                    return got, left
                left, room[tip[0]] = left - got, room[tip[0]] - got
                if worst and tip not in self.decided:  # the lines of a decided one are running
                    open_lines[tip[0]][depth + 1] += got
        return 0, left

    def _key(self, tip: Place) -> tuple[int, float, Place]:
        return len(tip), -self.wants[tip][1], tip

    def _chain(self, leaf: Place) -> float:
        """Seconds from the prompt to the end of `leaf` without any wait: a sibling starts at its tip's head."""
        seconds = self.durations.turn(leaf)
        for depth in range(len(leaf) - 1, 0, -1):
            tip = leaf[:depth]
            seconds += self.durations.turn(tip) + self.durations.calls(tip)
            if leaf[depth] > 0:
                seconds += self.durations.head((*tip, 0))
        return seconds
