"""The budget counts the leaves that one tree may still grow and decides which tip gets them (docs/method.md, section
4).

The budget serves tips in a canonical order that does not depend on timing: by depth, then score (highest first), then
path. In that order a tip that wants w siblings gets `min(w, B, C_r)`, where B leaves are left in the tree and C_r
leaves are left to the tip's root. Tips become known in any order. `settle` makes a decision final as soon as no event
to come can change it, so the result equals serving in canonical order. What can still come is an exact count: it
follows from the running lines, the rule's maximum at each depth, and the depth of the deepest tip that the call limit
allows.

Knows counts, places and scores. Refuses to know tokens, rules, tools and the places of fills.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from arpo.core.branching import DEEPEST
from arpo.core.place import Place


@dataclass(frozen=True, slots=True)
class Want:
    """A tip whose decision is not yet final."""

    place: Place
    wanted: int
    score: float
    key: tuple[float, Place] = field(init=False, repr=False)  # sorts tips of one depth into canonical order

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (-self.score, self.place))

    @property
    def depth(self) -> int:
        return len(self.place)


class Budget:
    """`left` is B; `room[r]` is C_r. A *line* is a running branch; the depth of its next unknown tip identifies it."""

    def __init__(
        self, *, leaves: int, roots: int, root_cap: int, most: Callable[[int], int], deepest: int = DEEPEST
    ) -> None:
        self.left = leaves - roots
        self.room = [root_cap - 1] * roots
        self._most = [most(depth) for depth in range(1, min(deepest, DEEPEST) + 1)]  # for tips at depth 1, 2, ...
        self._leaves = leaves
        self._become: dict[tuple[int, int], int] = {}  # see _lines_from
        self._lines: list[Counter[int]] = [Counter() for _ in range(roots)]
        self._open: list[dict[Place, Want]] = [{} for _ in range(roots)]

    def start_line(self, root: int, depth: int) -> None:
        """Start a line of `root` whose next tip has this depth."""
        self._lines[root][depth] += 1

    def stop_line(self, root: int, depth: int) -> None:
        """End a line before its tip at this depth."""
        lines = self._lines[root]
        lines[depth] -= 1
        if not lines[depth]:
            del lines[depth]

    def reach(self, place: Place) -> None:
        """Move the line that reached the tip at `place` on to the next depth: the tip's probe continues it."""
        self.stop_line(place[0], len(place))
        self.start_line(place[0], len(place) + 1)

    def hold(self, want: Want) -> None:
        """Keep a tip until its decision is final."""
        self._open[want.place[0]][want.place] = want

    def settle(self) -> list[tuple[Place, int]]:
        """The tips whose decisions are final now, with the number of siblings granted. Every sibling starts a line."""
        granted: list[tuple[Place, int]] = []
        progress = True
        while progress:  # a grant can make other decisions final: a root without room reserves nothing
            progress = False
            left, room = self.left, [*self.room]  # for the next tip, if no tip that is still unknown gets a sibling
            for want in sorted(
                chain.from_iterable(map(dict.values, self._open)), key=lambda want: (want.depth, want.key)
            ):
                root = want.place[0]
                count = min(want.wanted, left, room[root])
                left -= count
                room[root] -= count
                if count and count > self._certain(want):
                    continue
                del self._open[root][want.place]
                if count:
                    self.left -= count
                    self.room[root] -= count
                    self._lines[root][want.depth + 1] += count
                granted.append((want.place, count))
                progress = True
        return granted

    def take_excess(self) -> int:
        """Take the leaves that no root can use any more out of the budget, and return their number. The caller starts
        them from the prompt."""
        usable = sum(min(room, self._can_add(root, self._open[root].values())) for root, room in enumerate(self.room))
        excess = max(0, self.left - usable)
        self.left -= excess
        return excess

    def share_rest(self, tips: Iterable[tuple[float, Place]]) -> dict[Place, int]:
        """Give what is left to `tips`, (score, place) of tips without siblings, once no line runs any more: one sibling
        each by falling score, then by path, and again from the first, as long as their roots have room. Every sibling
        starts a line."""
        ranked = [place for _, place in sorted(tips, key=lambda tip: (-tip[0], tip[1]))]
        granted = dict.fromkeys(ranked, 0)
        while self.left and (able := [place for place in ranked if self.room[place[0]]]):
            for place in able:
                if self.left and self.room[place[0]]:
                    self.left -= 1
                    self.room[place[0]] -= 1
                    self._lines[place[0]][len(place) + 1] += 1
                    granted[place] += 1
        return granted

    def _certain(self, want: Want) -> int:
        """The number of siblings that `want` gets at least, whatever the tips before it still get."""
        root = want.place[0]
        reserved = [self._reserved(other, want) for other in range(len(self.room))]
        return max(0, min(want.wanted, self.left - sum(reserved), self.room[root] - reserved[root]))

    def _reserved(self, root: int, want: Want) -> int:
        """The maximum number of siblings that tips of `root` before `want` in canonical order can still get."""
        if not self.room[root]:
            return 0
        before = [tip for tip in self._open[root].values() if (tip.depth, tip.key) < (want.depth, want.key)]
        return min(self.room[root], self._can_add(root, before, want.depth))

    def _can_add(self, root: int, tips: Iterable[Want], last: int | None = None) -> int:
        """The maximum number of leaves that `tips`, all lines of `root` and their descendants can add at tips down to
        depth `last`."""
        last = len(self._most) if last is None else last
        from_lines = sum(count * (self._lines_from(depth, last) - 1) for depth, count in self._lines[root].items())
        return from_lines + sum(tip.wanted * self._lines_from(tip.depth + 1, last) for tip in tips)

    def _lines_from(self, depth: int, last: int) -> int:
        """The number of lines that one line, whose next tip has this depth, can become below depth `last`, if every tip
        adds the maximum to every line."""
        if (depth, last) not in self._become:
            lines = 1
            for most in self._most[depth - 1 : last]:
                lines = min(lines * (1 + most), self._leaves + 1)  # counting beyond the leaves changes nothing
            self._become[depth, last] = lines
        return self._become[depth, last]
