"""Expressions as trees, and their exact values where those are rational.

Knows numbers. Refuses to know notation: `reader` does. An expression whose value would take too long to compute raises
UndecidedError.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

MAX_BITS = 40_000  # of an exact number, and of the precision of a ball
MAX_WORK = 800_000  # nodes times precision that one comparison may evaluate: about a second
CONSTANTS = frozenset(("pi", "e", "i"))


class _Work(threading.local):
    left: float = math.inf


_WORK = _Work()


@contextlib.contextmanager
def limited_work() -> Iterator[None]:
    """Inside this context, comparisons that take too long raise UndecidedError. The limit counts operations, so that a
    busy machine does not change a reward."""
    _WORK.left = MAX_WORK
    try:
        yield
    finally:
        _WORK.left = math.inf


def spend(work: float) -> None:
    _WORK.left -= work
    if _WORK.left < 0:
        raise UndecidedError("takes too long")


class UndecidedError(Exception):
    """The value is not defined, or cannot be computed within MAX_BITS."""


class IrrationalError(Exception):
    """The expression has no rational value that this module can compute exactly."""


@dataclass(frozen=True, slots=True)
class Expr:
    """A number (`op` "num", its value in `value`), a name ("sym", in `name`), or an operation on `args`."""

    op: str
    args: tuple["Expr", ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


Point = Mapping[str, Fraction]
NOWHERE: Point = MappingProxyType({})


def num(value: int | Fraction) -> Expr:
    return Expr("num", value=Fraction(value))


def sym(name: str) -> Expr:
    return Expr("sym", name=name)


def apply(op: str, *args: Expr) -> Expr:
    return Expr(op, args)


def minus(left: Expr, right: Expr) -> Expr:
    return apply("-", left, right)


def walk(expr: Expr) -> Iterator[Expr]:
    yield expr
    for arg in expr.args:
        yield from walk(arg)


def variables(expr: Expr) -> frozenset[str]:
    """The names in `expr` that are no constants."""
    return frozenset(node.name for node in walk(expr) if node.op == "sym") - CONSTANTS


def substitute(expr: Expr, names: Mapping[str, Expr]) -> Expr:
    if expr.op == "sym":
        return names.get(expr.name, expr)
    return Expr(expr.op, tuple(substitute(arg, names) for arg in expr.args), expr.value, expr.name)


# --- exact rational values


def rational(expr: Expr, point: Point = NOWHERE) -> Fraction | None:
    """The exact value, or None if it is not known to be rational. Raises UndecidedError."""
    try:
        return exact(expr, point)
    except IrrationalError:
        return None


def exact(expr: Expr, point: Point) -> Fraction:
    spend(1)
    if expr.op == "num":
        return expr.value
    if expr.op == "sym":
        if expr.name in point:
            return point[expr.name]
        raise IrrationalError
    rule = EXACT.get(expr.op)
    if rule is None:
        raise IrrationalError
    return _bounded(rule(*(exact(arg, point) for arg in expr.args)))


def _bounded(value: Fraction) -> Fraction:
    if bits_of(value) > MAX_BITS:
        raise UndecidedError("too large")
    return value


def bits_of(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _divide(left: Fraction, right: Fraction) -> Fraction:
    if right == 0:
        raise UndecidedError("division by zero")
    return left / right


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if base < 0:
            raise IrrationalError
        return _power(_root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    if base == 0 and exponent <= 0:
        raise UndecidedError("0 to a power that is not positive")
    if abs(base) != 1 and bits_of(base) * abs(exponent) > 2 * MAX_BITS:
        raise UndecidedError("too large")
    return base ** int(exponent % 2 if abs(base) == 1 else exponent)


def _root(value: Fraction, degree: Fraction) -> Fraction:
    """The real root of a rational number that is a power of a rational number."""
    k = int(degree)
    if k != degree or not 1 <= k <= 1000 or (value < 0 and k % 2 == 0):
        raise IrrationalError
    top, bottom = (_integer_root(part, k) for part in (abs(value.numerator), value.denominator))
    return Fraction(-top if value < 0 else top, bottom)


def _integer_root(value: int, k: int) -> int:
    low, high = 0, 1 << (value.bit_length() // k + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**k <= value else (low, middle - 1)
    if low**k != value:
        raise IrrationalError
    return low


def _whole(value: Fraction, most: int) -> int:
    if value.denominator != 1 or not value >= 0:
        raise IrrationalError
    if value > most:
        raise UndecidedError("too large")
    return int(value)


def _log(base: Fraction, value: Fraction) -> Fraction:
    if base <= 0 or base == 1 or value <= 0:
        raise UndecidedError("no logarithm")
    logs = [math.log(part.numerator) - math.log(part.denominator) for part in (value, base)]
    guess = Fraction(logs[0] / logs[1]).limit_denominator(64)
    if (
        abs(guess) * bits_of(base) <= MAX_BITS
        and bits_of(value) * guess.denominator <= MAX_BITS
        and base**guess.numerator == value**guess.denominator
    ):
        return guess
    raise IrrationalError


def _gcd(*values: Fraction) -> Fraction:
    return Fraction(math.gcd(*(_whole(value, 1 << 4096) for value in values)))


def _lcm(*values: Fraction) -> Fraction:
    return Fraction(math.lcm(*(_whole(value, 1 << 256) for value in values)))


def _doubled(value: Fraction) -> Fraction:
    return Fraction(math.prod(range(_whole(value, 3000), 1, -2)))


def _total(*values: Fraction) -> Fraction:
    total = Fraction(0)
    for value in values:
        total = _bounded(total + value)
    return total


EXACT: Mapping[str, Callable[..., Fraction]] = MappingProxyType(
    {
        "+": _total,
        "-": lambda left, right: left - right,
        "neg": lambda value: -value,
        "*": lambda left, right: left * right,
        "/": _divide,
        "^": _power,
        "root": _root,
        "abs": abs,
        "floor": lambda value: Fraction(math.floor(value)),
        "ceil": lambda value: Fraction(math.ceil(value)),
        "!": lambda value: Fraction(math.factorial(_whole(value, 3000))),
        "!!": _doubled,
        "binom": lambda n, k: Fraction(math.comb(_whole(n, 20_000), _whole(k, 20_000))),
        "log": _log,
        "gcd": _gcd,
        "lcm": _lcm,
        "max": lambda *values: max(values),
        "min": lambda *values: min(values),
    }
)
