"""The leaves of one tree still allowed, and which tip gets them (docs/method.md, section 4, "Budget").

Tips are served in a canonical order that knows no clock: by depth, then score (highest first), then path. A tip that wants w
siblings gets `min(w, B, C_r)` in that order, with B leaves left in all and C_r left to its root. Tips become known in any order;
`settle` makes a decision final as soon as nothing that is still to come can change it, so the outcome equals serving in that order.
"Can" is counted exactly: from the lines that run, what the rule wants at most at each depth, and the deepest tip that calls allow.

Knows counts, places and scores. Refuses to know tokens, rules, tools and fills' places.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from arpo.core.branching import DEEPEST
from arpo.core.place import Place


@dataclass(frozen=True, slots=True)
class Want:
    """A tip whose decision is not final."""

    place: Place
    wanted: int
    score: float
    key: tuple[float, Place] = field(init=False, repr=False)  # canonical order among tips of one depth

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (-self.score, self.place))

    @property
    def depth(self) -> int:
        return len(self.place)


class Budget:
    """`left` is B; `room[r]` is C_r. A *line* is a branch that is still running, known by the depth of its next unknown tip."""

    def __init__(self, *, leaves: int, roots: int, root_cap: int, most: Callable[[int], int], deepest: int = DEEPEST) -> None:
        self.left = leaves - roots
        self.room = [root_cap - 1] * roots
        self._most = [most(depth) for depth in range(1, min(deepest, DEEPEST) + 1)]  # of the tips at depth 1, 2, ...
        self._leaves = leaves
        self._become: dict[tuple[int, int], int] = {}  # see _lines_from
        self._lines: list[Counter[int]] = [Counter() for _ in range(roots)]
        self._open: list[dict[Place, Want]] = [{} for _ in range(roots)]

    def start_line(self, root: int, depth: int) -> None:
        """A line of `root` runs whose next tip has this depth."""
        self._lines[root][depth] += 1

    def stop_line(self, root: int, depth: int) -> None:
        """A line ended before the tip at this depth."""
        lines = self._lines[root]
        lines[depth] -= 1
        if not lines[depth]:
            del lines[depth]

    def reach(self, place: Place) -> None:
        """The head after the tip at `place` is known: the line that ran to it goes on, as its probe, to the next depth."""
        self.stop_line(place[0], len(place))
        self.start_line(place[0], len(place) + 1)

    def hold(self, want: Want) -> None:
        """Keep a tip until `settle` finds its decision final."""
        self._open[want.place[0]][want.place] = want

    def settle(self) -> list[tuple[Place, int]]:
        """The tips whose decisions are final now, with the siblings granted, each of which starts a line."""
        granted: list[tuple[Place, int]] = []
        progress = True
        while progress:  # a grant can make others final: a root without room reserves nothing
            progress = False
            for want in sorted(chain.from_iterable(map(dict.values, self._open)), key=lambda want: (want.depth, want.key)):
                count = self._final(want)
                if count is None:
                    continue
                root = want.place[0]
                del self._open[root][want.place]
                if count:
                    self.left -= count
                    self.room[root] -= count
                    self._lines[root][want.depth + 1] += count
                granted.append((want.place, count))
                progress = True
        return granted

    def take_excess(self) -> int:
        """Leaves that no root can use any more. They are taken from the budget: start them from the prompt."""
        usable = sum(min(room, self._can_add(root, self._open[root].values())) for root, room in enumerate(self.room))
        excess = max(0, self.left - usable)
        self.left -= excess
        return excess

    def _final(self, want: Want) -> int | None:
        """What `want` gets, or None while something that could precede it may change that."""
        root, room = want.place[0], self.room[want.place[0]]
        if not (want.wanted and self.left and room):
            return 0
        got = min(want.wanted, self.left, room)  # if nothing that precedes it gets anything
        reserved = [self._reserved(other, want) for other in range(len(self.room))]
        return got if got <= min(self.left - sum(reserved), room - reserved[root]) else None

    def _reserved(self, root: int, want: Want) -> int:
        """The most that tips of `root` before `want` in canonical order can still get."""
        if not self.room[root]:
            return 0
        before = [tip for tip in self._open[root].values() if (tip.depth, tip.key) < (want.depth, want.key)]
        return min(self.room[root], self._can_add(root, before, want.depth))

    def _can_add(self, root: int, tips: Iterable[Want], last: int | None = None) -> int:
        """The most leaves that `tips`, all lines of `root` and what grows from either can add at tips down to depth `last`."""
        last = len(self._most) if last is None else last
        from_lines = sum(count * (self._lines_from(depth, last) - 1) for depth, count in self._lines[root].items())
        return from_lines + sum(tip.wanted * self._lines_from(tip.depth + 1, last) for tip in tips)

    def _lines_from(self, depth: int, last: int) -> int:
        """What one line, whose next tip has this depth, can become below depth `last`: each tip adds the most, to every line."""
        if (depth, last) not in self._become:
            lines = 1
            for most in self._most[depth - 1 : last]:
                lines = min(lines * (1 + most), self._leaves + 1)  # more than there are leaves says no more
            self._become[depth, last] = lines
        return self._become[depth, last]
