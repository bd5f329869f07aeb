"""What an answer of mathematics may be, and when two of them are the same.

Refuses to know notation: `reader` does. A missing unit or name agrees with any, two different ones never.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from arpo.rewards.maths.equality import equal, proportional, sign
from arpo.rewards.maths.expressions import Expr, UndecidedError, apply, minus, num, substitute, sym, variables
from arpo.rewards.maths.regions import EMPTY, Region, border, interval, point

Value = Union[
    "Number", "Ratio", "Collection", "Matrix", "Region", "Condition", "Relation", "Equation", "Congruence",
    "Choice", "Text",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """An expression, with or without variables, the unit after it ("" for none), and the base that a numeral is written
    in (1010_2; 0 where no base is written)."""

    expr: Expr
    unit: str = ""
    base: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """a:b or a:b:c, which may be a time of day, with "am" or "pm" as its unit."""

    parts: tuple[Expr, ...]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """Several values. `kind` is "list" (commas alone), "{}", "()", "[]", "(]", "[)", "<>", "dots" (a list with an
    ellipsis, so its order counts), "all" (statements that hold together) or "cases"."""

    kind: str
    items: tuple["Value", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Value", ...], ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A variable and the real numbers that it may be: x > 2."""

    name: str
    region: Region


@dataclass(frozen=True, slots=True)
class Relation:
    """Two sides of "<", "<=", "!=" or "in"."""

    op: str
    left: "Value"
    right: "Value"


@dataclass(frozen=True, slots=True)
class Equation:
    left: "Value"
    right: "Value"


@dataclass(frozen=True, slots=True)
class Congruence:
    """right modulo `modulus`; `left` is None in `3 (mod 7)`."""

    left: Expr | None
    right: Expr
    modulus: Expr


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter of a question with choices, and what stands beside it."""

    letter: str
    value: Union["Value", None] = None


@dataclass(frozen=True, slots=True)
class Text:
    """Words, or the name of a set, compared as they are written."""

    text: str


def same(left: "Value", right: "Value") -> bool:
    """True if the answer `left` and the gold `right` are the same. Raises UndecidedError."""
    if isinstance(left, Choice) or isinstance(right, Choice):
        return _same_choice(left, right)
    if isinstance(left, Equation) != isinstance(right, Equation):
        if isinstance(left, Equation):
            return _unnamed(left, right, swapped=False)
        assert isinstance(right, Equation)
        return _unnamed(right, left, swapped=True)
    if (region := as_region(left, right)) is not None and (other_region := as_region(right, left)) is not None:
        return _same_condition_names(left, right) and region.equals(other_region)
    if (isinstance(left, Number) and isinstance(right, Ratio)) or (
        isinstance(left, Ratio) and isinstance(right, Number)
    ):
        return _ratio_is_number(left, right)
    if type(left) is not type(right):
        return False
    return _same_kind(left, right)


def _same_kind(left: "Value", right: "Value") -> bool:
    match left, right:
        case Number(), Number():
            return same_numbers(left, right)
        case Ratio(), Ratio():
            return _same_ratios(left, right)
        case Collection(), Collection():
            return _same_collections(left, right)
        case Matrix(), Matrix():
            shapes = [[len(row) for row in side.rows] for side in (left, right)]
            rows = zip(left.rows, right.rows, strict=False)
            return shapes[0] == shapes[1] and all(_in_order(*pair) for pair in rows)
        case Equation(), Equation():
            return _same_equations(left, right)
        case Relation(), Relation():
            return _same_relations(left, right)
        case Congruence(), Congruence():
            return _same_congruences(left, right)
    return left == right


# --- numbers


def agree(left: str, right: str) -> bool:
    """True for units that do not contradict: one is missing (but not a half of the day), or both are degrees of which
    one has no scale."""
    if not left or not right:
        return not {left, right} & {"am", "pm"}
    return left == right or (left[0] == right[0] == "°" and "°" in (left, right))


def same_numbers(left: Number, right: Number) -> bool:
    """True if the answer `left` is the number `right`. A gold in another base than ten wants a numeral of that base:
    who is asked for 5 in base two has not answered with 5."""
    if not agree(left.unit, right.unit) or (right.base not in (0, 10) and left.base != right.base):
        return False
    if _is_letter(left.expr) and _is_letter(right.expr):
        return left.expr.name.casefold() == right.expr.name.casefold()  # letters of choices
    if (left.unit == "%") == (right.unit == "%"):
        return equal(left.expr, right.expr)
    if equal(left.expr, right.expr):  # 64% is 64 where the sign was left off; a number up to 1 is a share
        return not variables(left.expr) and sign(minus(apply("abs", left.expr), num(1))) > 0
    share, number = (left, right) if left.unit == "%" else (right, left)
    return equal(share.expr, apply("*", num(100), number.expr))


def _is_letter(expr: Expr) -> bool:
    return expr.op == "sym" and len(expr.name) == 1 and expr.name.casefold() in "abcdfgh"


def _same_ratios(left: Ratio, right: Ratio) -> bool:
    if not agree(left.unit, right.unit) or len(left.parts) != len(right.parts):
        return False
    if left.unit or right.unit:
        return all(equal(*pair) for pair in zip(left.parts, right.parts, strict=True))
    first, other = left.parts, right.parts
    return all(
        equal(apply("*", first[0], b), apply("*", other[0], a)) for a, b in zip(first[1:], other[1:], strict=True)
    )


def _ratio_is_number(left: "Value", right: "Value") -> bool:
    ratio, number = (left, right) if isinstance(left, Ratio) else (right, left)
    assert isinstance(ratio, Ratio) and isinstance(number, Number)
    if len(ratio.parts) != 2 or ratio.unit or number.unit:
        return False
    return equal(apply("/", *ratio.parts), number.expr)


# --- collections and sets


def _in_order(left: Sequence["Value"], right: Sequence["Value"]) -> bool:
    return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))


def _as_sets(left: Sequence["Value"], right: Sequence["Value"]) -> bool:
    return all(any(same(a, b) for b in right) for a in left) and all(any(same(a, b) for a in left) for b in right)


def _same_collections(left: Collection, right: Collection) -> bool:
    kinds = {left.kind, right.kind}
    if kinds <= {"list", "{}"}:
        return _as_sets(left.items, right.items)
    if kinds in ({"all"}, {"cases"}):
        return _as_sets(left.items, right.items)
    if kinds == {"all", "()"}:
        together, pair = (left, right) if left.kind == "all" else (right, left)
        return _values_by_name(together, pair)
    if kinds == {"()", "<>"}:
        return _in_order(left.items, right.items)
    return len(kinds) == 1 and _in_order(left.items, right.items)


def _values_by_name(together: Collection, pair: Collection) -> bool:
    """True for x=1, y=2 and (1,2)."""
    named = [item for item in together.items if isinstance(item, Equation) and isinstance(item.left, Number)]
    if len(named) != len(together.items):
        return False
    ordered = sorted(named, key=lambda item: item.left.expr.name if isinstance(item.left, Number) else "")
    return _in_order([item.right for item in ordered], pair.items)


def as_region(value: "Value", beside: Union["Value", None] = None) -> Region | None:
    """The set of real numbers that `value` is, or None. (1,2) and {1} are one only beside another set."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Condition):
        return value.region
    if not isinstance(value, Collection) or (beside is not None and isinstance(beside, Collection)):
        return None
    if beside is not None and not isinstance(beside, Region | Condition):
        return None
    if value.kind == "{}":
        region = EMPTY
        for item in value.items:
            if not isinstance(item, Number) or item.unit or variables(item.expr):
                return None
            region = region.union(point(item.expr))
        return region
    return _as_interval(value)


def _as_interval(value: Collection) -> Region | None:
    if value.kind not in ("()", "[]", "(]", "[)") or len(value.items) != 2:
        return None
    ends: list[Expr | None] = []
    closed = [value.kind[0] == "[", value.kind[1] == "]"]
    for at, item in enumerate(value.items):
        if not isinstance(item, Number) or item.unit:
            return None
        is_border, infinite = border(item.expr)
        if not is_border or infinite == (1, -1)[at] or (infinite and closed[at]):
            return None
        ends.append(None if infinite else item.expr)
    if None not in ends and sign(minus(*ends)) >= 0:  # type: ignore[arg-type]
        return None
    return interval(*ends, closed=(closed[0], closed[1]))


def _same_condition_names(left: "Value", right: "Value") -> bool:
    return not (isinstance(left, Condition) and isinstance(right, Condition)) or left.name == right.name


# --- statements


def is_name(value: "Value") -> bool:
    """True for what an answer may be called: x, AB, f(x), a_n, (a,b), m+n; not for x+1 or 2x, which are equations."""
    if isinstance(value, Collection):
        return value.kind == "()" and all(is_name(item) for item in value.items)
    return isinstance(value, Number) and not value.unit and _only_names(value.expr)


def _only_names(expr: Expr) -> bool:
    if expr.op == "sym":
        return bool(variables(expr))
    return (
        expr.op in ("+", "-", "*", "/", "abs")
        and all(_only_names(arg) for arg in expr.args)
        and (expr.op == "abs" or len(variables(expr)) > 1)
    )


def _unnamed(equation: Equation, other: "Value", *, swapped: bool) -> bool:
    """True if the equation gives a name to `other`: x = 5 is 5, 5 = x too."""
    for name, value in ((equation.left, equation.right), (equation.right, equation.left)):
        if is_name(name) and not isinstance(other, Condition | Relation | Congruence):
            return same(other, value) if swapped else same(value, other)
    return False


def _same_equations(left: Equation, right: Equation) -> bool:
    if not isinstance(left.right, Number) or not isinstance(right.right, Number):
        return _same_names(left.left, right.left) and same(left.right, right.right)
    if not isinstance(left.left, Number) or not isinstance(right.left, Number):
        return False
    if not agree(left.right.unit, right.right.unit):
        return False
    if _same_names(left.left, right.left) and is_name(left.left):
        return same(*_renamed(left, right))
    differences = [minus(side.left.expr, side.right.expr) for side in (left, right)]  # type: ignore[union-attr]
    return proportional(*differences) is not None


def _same_names(left: "Value", right: "Value") -> bool:
    if left == right:
        return True
    if not isinstance(left, Number) or not isinstance(right, Number):
        return False
    one, other = (side.expr for side in (left, right))
    if one.op == other.op == "sym":  # f(n) = n is f(x) = x, and y(x) = 2x is y = 2x
        heads = [name.partition("(") for name in (one.name, other.name)]
        return heads[0][0] == heads[1][0] and (
            not all(head[1] for head in heads) or all(_parameter(head[2]) for head in heads)
        )
    return False


def _parameter(arguments: str) -> str:
    """The only argument of f(x) if it is a letter, else ""."""
    name = arguments.removesuffix(")")
    return name if len(name) == 1 and name.isalpha() else ""


def _renamed(left: Equation, right: Equation) -> tuple["Value", "Value"]:
    names = [side.left.expr.name.partition("(")[2] for side in (left, right) if isinstance(side.left, Number)]
    if len(names) == 2 and all(names) and (one := _parameter(names[0])) and (other := _parameter(names[1])):
        assert isinstance(left.right, Number)
        return Number(substitute(left.right.expr, {one: sym(other)}), left.right.unit), right.right
    return left.right, right.right


def _same_relations(left: Relation, right: Relation) -> bool:
    if left.op != right.op:
        return False
    if left.op == "in":
        return same(left.left, right.left) and same(left.right, right.right)
    differences = []
    for side in (left, right):
        if not isinstance(side.left, Number) or not isinstance(side.right, Number):
            return left == right
        differences.append(minus(side.left.expr, side.right.expr))
    factor = proportional(*differences)
    return factor is not None and (factor > 0 or left.op == "!=")


def _same_congruences(left: Congruence, right: Congruence) -> bool:
    if not equal(left.modulus, right.modulus):
        return False
    if left.left is not None and right.left is not None and not equal(left.left, right.left):
        return False
    if equal(left.right, right.right):
        return True
    turns = apply("/", minus(left.right, right.right), left.modulus)
    try:
        return not variables(turns) and equal(turns, apply("floor", turns))
    except UndecidedError:
        return False


def _same_choice(left: "Value", right: "Value") -> bool:
    if isinstance(left, Choice) and isinstance(right, Choice):
        values = left.value is not None and right.value is not None
        return left.letter == right.letter and (not values or same(left.value, right.value))  # type: ignore[arg-type]
    choice, other = (left, right) if isinstance(left, Choice) else (right, left)
    assert isinstance(choice, Choice)
    if isinstance(other, Number) and other.expr.op == "sym" and len(other.expr.name) == 1 and other.expr.name.isupper():
        return choice.letter == other.expr.name
    return choice.value is not None and same(choice.value, other)
