"""Puts the sides of a relation, and the statements of an answer, together: chains of equations must hold, inequalities
in one variable are sets of real numbers.

Refuses to know tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from arpo.rewards.maths.equality import sign
from arpo.rewards.maths.expressions import Expr, apply, variables
from arpo.rewards.maths.regions import REALS, Region, border, interval, point
from arpo.rewards.maths.tokens import UnreadableError
from arpo.rewards.maths.values import (
    Collection,
    Condition,
    Congruence,
    Equation,
    Number,
    Relation,
    Value,
    as_region,
    is_name,
    same,
)

LESS = {"<": "<", "le": "<=", ">": "<", "ge": "<="}
PLAIN = Condition("", REALS)  # beside it, (1,2) is an interval


def chain(sides: Sequence[Value], relations: Sequence[str], modulus: Expr | None) -> Value:
    """The statement `sides[0] relations[0] sides[1] ...`. Raises UnreadableError for one that does not hold."""
    if modulus is not None:
        return _congruence(sides, relations, modulus)
    kinds = set(relations)
    if kinds == {"="}:
        return _equation(sides)
    if len(relations) == 1 and kinds == {"in"}:
        return _membership(*sides)
    if len(relations) == 1 and kinds == {"ne"}:
        return _different(*sides)
    if kinds <= {"<", "le"}:
        return _ascending(sides, [LESS[relation] for relation in relations])
    if kinds <= {">", "ge"}:
        return _ascending(sides[::-1], [LESS[relation] for relation in relations[::-1]])
    raise UnreadableError("relations of several kinds")


def _congruence(sides: Sequence[Value], relations: Sequence[str], modulus: Expr) -> Value:
    numbers = [side.expr for side in sides if isinstance(side, Number) and not side.unit]
    if len(numbers) != len(sides) or len(sides) > 2 or not set(relations) <= {"equiv", "="}:
        raise UnreadableError("a congruence")
    return Congruence(numbers[0] if len(numbers) == 2 else None, numbers[-1], modulus)


def _is_constant(value: Value) -> bool:
    return isinstance(value, Number) and not variables(value.expr)


def _equation(sides: Sequence[Value]) -> Value:
    constants = [side for side in sides if isinstance(side, Number) and _is_constant(side)]
    for before, after in pairwise(constants):
        if not same(before, replace(after, base=0)):  # 555_{10} = 4210_5
            raise UnreadableError("an equation that does not hold")
    if len(constants) == len(sides):
        return sides[-1]  # 6*7 = 42
    if len(sides) > 2:  # x = 40 + 2 = 42
        unknown = [side for side in sides if side not in constants]
        if len(unknown) == 1 and sides[0] is unknown[0]:
            return Equation(sides[0], sides[-1])
        if not all(same(left, right) for left, right in pairwise(sides[1:])):
            raise UnreadableError("a chain that is not known to hold")
    left, right = sides[0], sides[-1]
    if isinstance(left, Collection) and isinstance(right, Collection) and is_name(left):
        if len(left.items) != len(right.items):
            raise UnreadableError("an equation that does not hold")
        pairs = zip(left.items, right.items, strict=True)
        return Collection("all", tuple(Equation(name, value) for name, value in pairs))
    return Equation(left, right)


def _membership(left: Value, right: Value) -> Value:
    region = as_region(right, PLAIN)
    if region is not None and isinstance(left, Number) and left.expr.op == "sym":
        return Condition(left.expr.name, region)
    return Relation("in", left, right)


def _variable(value: Value) -> str:
    """The name of a lone variable, else ""."""
    if isinstance(value, Number) and value.expr.op == "sym" and border(value.expr) == (False, 0):
        return value.expr.name
    return ""


def _border(value: Value) -> Expr:
    if not isinstance(value, Number) or value.unit or not border(value.expr)[0]:
        raise UnreadableError("a border that is no number")
    return value.expr


def _different(left: Value, right: Value) -> Value:
    for name, value in ((_variable(left), right), (_variable(right), left)):
        if name and _is_constant(value):
            return Condition(name, REALS.without(point(_border(value))))
    return Relation("!=", left, right)


def _ascending(sides: Sequence[Value], relations: Sequence[str]) -> Value:
    """The statement that `sides` ascend: a condition if one side is a variable (or its absolute value) and the others
    are numbers."""
    names = [at for at, side in enumerate(sides) if not (isinstance(side, Number) and border(side.expr)[0])]
    if len(names) == 1 and len(sides) <= 3:
        middle = sides[names[0]]
        region = REALS
        for at, relation in enumerate(relations):
            closed = relation == "<="
            if at + 1 == names[0]:
                region = region.intersection(_half(_border(sides[at]), closed=closed, above=True))
            else:
                region = region.intersection(_half(_border(sides[at + 1]), closed=closed, above=False))
        if name := _variable(middle):
            if region.empty:
                raise UnreadableError("borders in the wrong order")
            return Condition(name, region)
        if isinstance(middle, Number) and middle.expr.op == "abs":
            inside = Number(middle.expr.args[0])
            if (name := _variable(inside)) and len(sides) == 2:
                return Condition(name, _of_absolute(region))
    relations_between = [Relation(relation, sides[at], sides[at + 1]) for at, relation in enumerate(relations)]
    if any(_is_constant(relation.left) and _is_constant(relation.right) for relation in relations_between):
        raise UnreadableError("numbers beside each other")
    return relations_between[0] if len(relations) == 1 else Collection("all", tuple(relations_between))


def _half(at: Expr, *, closed: bool, above: bool) -> Region:
    infinite = border(at)[1]
    if infinite:
        if infinite == (1 if above else -1) or closed:
            raise UnreadableError("an infinite border")
        return REALS
    return interval(at, None, closed=(closed, False)) if above else interval(None, at, closed=(False, closed))


def _of_absolute(region: Region) -> Region:
    """The numbers whose absolute value lies in `region`, which is one half of the line."""
    (at,) = region.points
    if sign(at) <= 0:
        raise UnreadableError("an absolute value and a negative number")
    negative = apply("neg", at)
    here, below = region.inside[1], region.inside[0]
    within = interval(negative, at, closed=(here, here))
    return within if below else REALS.without(interval(negative, at, closed=(not here, not here)))


def combined(items: Sequence[Value], is_or: bool) -> Value:
    """One value of the items of an answer, joined by commas and words."""
    if len(items) == 1:
        return items[0]
    if all(isinstance(item, Condition) for item in items):
        return _conditions([item for item in items if isinstance(item, Condition)], is_or=is_or)
    if (named := _values_of_one_name(items)) is not None:
        return named
    statements = [isinstance(item, Equation | Condition | Relation | Congruence) for item in items]
    if any(statements):
        if is_or and not all(isinstance(item, Equation) for item in items):
            raise UnreadableError("one statement or another")
        if is_or:
            raise UnreadableError("values of several names, of which one holds")
        parts: list[Value] = []
        for item in items:
            parts += item.items if isinstance(item, Collection) and item.kind == "all" else [item]
        return Collection("all", tuple(parts))
    if all(isinstance(item, Collection) and item.kind == "all" for item in items):
        raise UnreadableError("several groups of statements")
    return Collection("list", tuple(items))


def _conditions(items: Sequence[Condition], *, is_or: bool) -> Value:
    if len({item.name for item in items}) > 1:
        if is_or:
            raise UnreadableError("conditions of several names, of which one holds")
        return Collection("all", tuple(items))
    region = items[0].region
    for item in items[1:]:
        region = region.union(item.region) if is_or else region.intersection(item.region)
    if region.empty:
        raise UnreadableError("conditions that exclude each other")
    return Condition(items[0].name, region)


def _values_of_one_name(items: Sequence[Value]) -> Value | None:
    """x = 1, x = 2 and x = 1, 2 as one equation; None for anything else."""
    first = items[0]
    if not isinstance(first, Equation) or not is_name(first.left):
        return None
    values: list[Value] = []
    for item in items:
        if isinstance(item, Equation) and item.left == first.left:
            values.append(item.right)
        elif isinstance(item, Number) and _is_constant(item):
            values.append(item)
        else:
            return None
    return Equation(first.left, Collection("list", tuple(values)))


def set_operation(operator: str, left: Value, right: Value) -> Value:
    r"""A union, intersection or difference of sets of real numbers. Other sets are not read."""
    regions = [as_region(side, PLAIN) for side in (left, right)]
    if regions[0] is None or regions[1] is None:
        raise UnreadableError("a set whose borders are no numbers")
    match operator:
        case "cup":
            return regions[0].union(regions[1])
        case "cap":
            return regions[0].intersection(regions[1])
    return regions[0].without(regions[1])
