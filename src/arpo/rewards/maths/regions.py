"""Sets of real numbers whose borders are exact: unions of intervals and points.

Refuses to know notation. Borders are compared as `expressions` compares, so an operation may raise UndecidedError.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cmp_to_key

from arpo.rewards.maths.equality import sign
from arpo.rewards.maths.expressions import Expr, apply, minus, sym, variables

INFINITY = sym("infty")
Border = Expr | None  # None is infinite


def border(expr: Expr) -> tuple[bool, int]:
    """Whether the expression is a border of an interval, and its sign if it is infinite."""
    if expr == INFINITY:
        return True, 1
    if expr == apply("neg", INFINITY):
        return True, -1
    return not variables(expr), 0


@dataclass(frozen=True, slots=True)
class Region:
    """`points` ascend and cut the line into 2n+1 parts (gap, point, gap, ..., gap); `inside` says which belong to it.

    Every point matters: it differs from one of its neighbours.
    """

    points: tuple[Expr, ...]
    inside: tuple[bool, ...]

    def _combine(self, other: "Region", rule: Callable[[bool, bool], bool]) -> "Region":
        cuts: list[Expr] = []
        for point in sorted((*self.points, *other.points), key=cmp_to_key(_order)):
            if not cuts or sign(minus(cuts[-1], point)):
                cuts.append(point)
        parts = zip(self._over(cuts), other._over(cuts), strict=True)
        return _simplest(cuts, [rule(*pair) for pair in parts])

    def _over(self, cuts: list[Expr]) -> list[bool]:
        """What is inside, by the parts that `cuts` make; they hold all points of this region."""
        parts, at = [self.inside[0]], 0
        for cut in cuts:
            if at < len(self.points) and not sign(minus(self.points[at], cut)):
                parts += self.inside[2 * at + 1 : 2 * at + 3]
                at += 1
            else:
                parts += [parts[-1], parts[-1]]
        return parts

    def union(self, other: "Region") -> "Region":
        return self._combine(other, lambda a, b: a or b)

    def intersection(self, other: "Region") -> "Region":
        return self._combine(other, lambda a, b: a and b)

    def without(self, other: "Region") -> "Region":
        return self._combine(other, lambda a, b: a and not b)

    def equals(self, other: "Region") -> bool:
        return self.inside == other.inside and not any(
            sign(minus(a, b)) for a, b in zip(self.points, other.points, strict=True)
        )

    @property
    def empty(self) -> bool:
        return not any(self.inside)


def _order(left: Expr, right: Expr) -> int:
    return sign(minus(left, right))


def _simplest(cuts: list[Expr], inside: list[bool]) -> Region:
    points, parts = [], [inside[0]]
    for at, cut in enumerate(cuts):
        here, after = inside[2 * at + 1 : 2 * at + 3]
        if not parts[-1] == here == after:
            points.append(cut)
            parts += [here, after]
    return Region(tuple(points), tuple(parts))


REALS, EMPTY = Region((), (True,)), Region((), (False,))


def interval(low: Border, high: Border, *, closed: tuple[bool, bool] = (False, False)) -> Region:
    """The numbers between `low` and `high`; empty if they are in the wrong order."""
    region = REALS
    if low is not None:
        region = region.intersection(Region((low,), (False, closed[0], True)))
    if high is not None:
        region = region.intersection(Region((high,), (True, closed[1], False)))
    return region


def point(at: Expr) -> Region:
    return Region((at,), (False, True, False))
