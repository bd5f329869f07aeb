"""Whether expressions are equal: rational numbers exactly, algebraic numbers by a root separation bound, other
constants by balls of certified precision (FLINT), expressions with variables at random points.

Raises UndecidedError where that would take too long.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import methodcaller
from random import Random
from types import MappingProxyType
from typing import Any

from arpo.rewards.maths.expressions import (
    MAX_BITS,
    NOWHERE,
    Expr,
    IrrationalError,
    Point,
    UndecidedError,
    apply,
    bits_of,
    exact,
    minus,
    num,
    rational,
    spend,
    substitute,
    variables,
    walk,
)

# where expressions with variables are compared, one random number from each
RANGES = ((0, 1), (1, 4), (-1, 0), (-4, 4), (4, 60), (-60, 60), (100, 5000), (-5000, 5000))
_PRECISION = threading.Lock()  # FLINT's precision belongs to the process


def _flint() -> Any:
    import flint  # starts with the first irrational number

    return flint


def _ball(expr: Expr, point: Point, *, real: bool) -> Any:
    """An enclosure of the value. `real` raises UndecidedError where a root or logarithm of a negative number occurs."""
    flint = _flint()
    spend(1 + flint.ctx.prec / 256)
    value = rational(expr, point)
    if value is not None:
        return flint.acb(flint.fmpq(value.numerator, value.denominator))
    if expr.op == "sym":
        unit = {"pi": flint.acb(flint.arb.pi()), "e": flint.acb(1).exp(), "i": flint.acb(0, 1)}
        return unit[expr.name]
    args = [_ball(arg, point, real=real) for arg in expr.args]
    if expr.op == "root":
        return _root_ball(args[0], rational(expr.args[1], point), real=real)
    if real and expr.op in ("^", "log", "ln") and args[0 if expr.op != "log" else 1].real < 0:
        exponent = rational(expr.args[-1], point)
        if expr.op != "^" or exponent is None or exponent.denominator != 1:
            raise UndecidedError("not real")
    rule = BALLS.get(expr.op)
    if rule is None:
        raise UndecidedError(f"no value for {expr.op}")
    result = rule(*args)
    if not result.is_finite():
        raise UndecidedError("not finite")
    return result


def _root_ball(value: Any, degree: Fraction | None, *, real: bool) -> Any:
    if degree is None or degree.denominator != 1 or not 1 <= degree <= 1000:
        raise UndecidedError("degree of a root")
    k = int(degree)
    negative = value.imag.is_zero() and value.real < 0
    if negative and k % 2:
        return -((-value).root(k))
    if negative and real:
        raise UndecidedError("not real")
    result = value.root(k)
    if not result.is_finite():
        raise UndecidedError("not finite")
    return result


def _integer_part(value: Any, up: bool) -> Any:
    flint = _flint()
    if not value.imag.is_zero():
        raise UndecidedError("the integer part of a complex number")
    part = (value.real.ceil() if up else value.real.floor()).unique_fmpz()
    if part is None:
        raise UndecidedError("too near to an integer")
    return flint.acb(part)


def _pow_ball(base: Any, exponent: Any) -> Any:
    whole = exponent.unique_fmpz() if exponent.is_exact() else None
    if whole is not None and abs(whole) > 1 << 40:
        raise UndecidedError("too large")
    return base**exponent


def _sum(*values: Any) -> Any:
    return sum(values[1:], values[0])


BALLS: Mapping[str, Any] = MappingProxyType(
    {
        "+": _sum,
        "-": lambda left, right: left - right,
        "neg": lambda value: -value,
        "*": lambda left, right: left * right,
        "/": lambda left, right: left / right,
        "^": _pow_ball,
        "abs": lambda value: _flint().acb(abs(value)),
        "floor": lambda value: _integer_part(value, up=False),
        "ceil": lambda value: _integer_part(value, up=True),
        "!": lambda value: (value + 1).gamma(),
        "binom": lambda n, k: (n + 1).gamma() * (k + 1).rgamma() * (n - k + 1).rgamma(),
        "log": lambda base, value: value.log() / base.log(),
        "ln": lambda value: value.log(),
        "exp": lambda value: value.exp(),
        "deg": lambda value: value * _flint().arb.pi() / 180,
    }
    | {name: methodcaller(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")}
    | {f"arc{name}": methodcaller(f"a{name}") for name in ("sin", "cos", "tan")}
)
FUNCTIONS = frozenset(BALLS)

# --- separation bounds of algebraic numbers


@dataclass(frozen=True, slots=True)
class _Bound:
    """log2 of bounds of a numerator and a denominator, both algebraic integers, over all their conjugates (Burnikel,
    Funke, Mehlhorn, Schirra and Schmitt: A separation bound for real algebraic expressions)."""

    upper: float
    lower: float

    def plus(self, other: "_Bound") -> "_Bound":
        sides = (self.upper + other.lower, self.lower + other.upper)
        return _Bound(max(sides) + 1, self.lower + other.lower)

    def over(self, other: "_Bound") -> "_Bound":
        return _Bound(self.upper + other.lower, self.lower + other.upper)

    def times(self, other: "_Bound") -> "_Bound":
        return _Bound(self.upper + other.upper, self.lower + other.lower)

    def to(self, power: int) -> "_Bound":
        bound = _Bound(self.upper * abs(power), self.lower * abs(power))
        return bound if power >= 0 else _Bound(bound.lower, bound.upper)

    def root(self, k: int) -> "_Bound":
        return _Bound((self.upper + (k - 1) * self.lower) / k, self.lower)


def separation_bits(expr: Expr) -> float | None:
    """b such that `expr` is 0 or its absolute value is at least 2**-b; None if it is not known to be algebraic."""
    degrees: dict[Expr | int, int] = {}
    bound = _bound(expr, degrees)
    if bound is None:
        return None
    degree = math.prod(degrees.values())
    return math.inf if degree > MAX_BITS else (degree - 1) * max(bound.upper, 0) + bound.lower + 2


def _bound(expr: Expr, degrees: dict[Expr | int, int]) -> _Bound | None:
    value = rational(expr)
    if value is not None:
        return _Bound(math.log2(abs(value.numerator) or 1), math.log2(value.denominator))
    if expr.op == "sym" and expr.name == "i":
        degrees[4] = 2
        return _Bound(0, 0)
    if expr.op in ("sin", "cos", "tan"):
        return _trigonometric_bound(expr, degrees)
    if expr.op not in ("+", "-", "neg", "*", "/", "^", "root"):
        return None
    first = _bound(expr.args[0], degrees)
    if first is None:
        return None
    if expr.op in ("^", "root"):
        exponent = rational(expr.args[1])
        if exponent is None or exponent == 0:
            return None
        exponent = 1 / exponent if expr.op == "root" else exponent
        if exponent.denominator > 1:
            degrees[apply("root", expr.args[0], num(exponent.denominator))] = exponent.denominator
            first = first.root(exponent.denominator)
        return first.to(exponent.numerator)
    for arg in expr.args[1:]:
        second = _bound(arg, degrees)
        if second is None:
            return None
        first = (first.times if expr.op == "*" else first.over if expr.op == "/" else first.plus)(second)
    return first


def _trigonometric_bound(expr: Expr, degrees: dict[Expr | int, int]) -> _Bound | None:
    turn = multiple_of_pi(expr.args[0])
    if turn is None:
        return None
    order = (turn / 2).denominator * 4  # i and the root of unity together
    degrees[order] = order
    half = _Bound(1, 1)  # (z + 1/z)/2
    return half.over(half) if expr.op == "tan" else half


def multiple_of_pi(expr: Expr) -> Fraction | None:
    """q if the expression is q*pi for a rational q."""
    if expr.op == "deg":
        value = rational(expr.args[0])
        return None if value is None else value / 180
    try:
        values = [exact(expr, {"pi": Fraction(at)}) for at in (1, 2, 5)]
    except (IrrationalError, UndecidedError):
        return None
    return values[0] if values == [values[0] * at for at in (1, 2, 5)] else None


# --- equality


def is_zero(expr: Expr) -> bool:
    """True if the value is 0: at every point, if there are variables. Raises UndecidedError."""
    names = sorted(variables(expr))
    if names:
        return _is_zero_everywhere(expr, names)
    value = rational(expr)
    if value is not None:
        return value == 0
    needed = separation_bits(expr)
    if needed is None:  # transcendental: no bound is proven, so far more digits than the expression has
        needed = 512 + 8 * _size(expr, NOWHERE)
    return _below(expr, NOWHERE, needed, real=False)


def sign(expr: Expr) -> int:
    """-1, 0 or 1 for a real constant. Raises UndecidedError."""
    if is_zero(expr):
        return 0
    value = rational(expr)
    if value is not None:
        return 1 if value > 0 else -1
    bits = 64
    while bits <= MAX_BITS:
        with _PRECISION, _flint().ctx.workprec(bits):
            ball = _ball(expr, NOWHERE, real=False)
            if not ball.imag.contains(0):
                break
            if ball.real > 0 or ball.real < 0:
                return 1 if ball.real > 0 else -1
        bits *= 4
    raise UndecidedError("no sign")


def _size(expr: Expr, point: Point) -> float:
    """The length of the expression in bits, with those of the magnitudes that occur in it: e^{-1000} is short, and has
    1,443 zeros after the point."""
    flint, total = _flint(), 0.0
    with _PRECISION, flint.ctx.workprec(64):
        for node in walk(expr):
            value = rational(node, point)
            if value is not None:
                total += 8 + bits_of(value)
                continue
            ball = _ball(node, point, real=False)
            if node.op in ("sinh", "cosh", "tanh", "coth"):
                total += 4 * float(_ball(node.args[0], point, real=False).abs_upper())
            total += 8
            if node.op == "^" and (base := _ball(node.args[0], point, real=False)) != 0:
                total += 1.5 * float((base.log() * _ball(node.args[1], point, real=False)).abs_upper())
            elif not ball.contains(0):
                total += 1.5 * abs(float(abs(ball).log()))
    if not total < MAX_BITS:
        raise UndecidedError("too large")
    return total


def _below(expr: Expr, point: Point, needed: float, *, real: bool) -> bool:
    """False once a ball excludes 0, True once one lies within 2**-needed of it."""
    if needed > MAX_BITS:
        raise UndecidedError("too close to decide")
    flint, bits = _flint(), 96
    while bits <= 4 * MAX_BITS:
        with _PRECISION, flint.ctx.workprec(bits):
            ball = _ball(expr, point, real=real)
            if not ball.contains(0):
                return False
            if ball.abs_upper() < flint.arb(2) ** int(-needed - 1):
                return True
        bits = max(2 * bits, min(int(needed) + 64, 4 * MAX_BITS)) if bits > 300 else bits * 4
    raise UndecidedError("too close to decide")


def points(names: list[str], scale: int = 1) -> Iterator[Point]:
    """Random points, the same for the same names. `scale` widens them."""
    random = Random(" ".join(names))
    for low, high in RANGES:
        yield {
            name: Fraction(random.randrange(low << 24, high << 24) * 2 + 1, (1 << 25) + 81) * scale for name in names
        }


def _scale(*exprs: Expr) -> int:
    """A factor for the points, so that they lie on both sides of every step of |x - 1000| or floor(x/1000)."""
    nodes = [node for expr in exprs for node in walk(expr)]
    if not any(node.op in ("abs", "floor", "ceil", "max", "min", "root") for node in nodes):
        return 1
    values = [value for node in nodes if (value := rational(node)) is not None]
    return 1 + max((max(abs(value.numerator), value.denominator) for value in values), default=0)


def _is_zero_everywhere(expr: Expr, names: list[str]) -> bool:
    places = [*points(names), *(points(names, scale) if (scale := _scale(expr)) > 1 else ())]
    for real in (True, False):
        valid = 0
        for place in places:
            try:
                value = rational(expr, place)
                if value is None:
                    zero = _below(expr, place, 256 + 2 * _size(expr, place), real=real)
                else:
                    zero = value == 0
                if not zero:
                    return False
                valid += 1
            except UndecidedError:
                spend(0)  # ends here if it was the work
                continue
        if valid >= 2:
            return True
    raise UndecidedError("nowhere defined")


def equal(left: Expr, right: Expr) -> bool:
    """True if the values are equal. Raises UndecidedError."""
    if left == right and not variables(left):
        return is_zero(minus(left, left))  # 1/0 is not equal to itself
    return is_zero(minus(left, right))


def proportional(left: Expr, right: Expr) -> int | None:
    """The sign of the constant c with left = c*right at every point, or None if there is none."""
    names = sorted(variables(left) | variables(right))
    scale = _scale(left, right)
    places = [{name: num(value) for name, value in point.items()} for point in points(names, scale)]
    first, valid = places[1], 0
    lead = (substitute(left, first), substitute(right, first))
    if is_zero(lead[0]) or is_zero(lead[1]):
        return None
    for place in [places[0], *places[2:]]:
        cross = minus(
            apply("*", substitute(left, place), lead[1]),
            apply("*", substitute(right, place), lead[0]),
        )
        try:
            if not is_zero(cross):
                return None
            valid += 1
        except UndecidedError:
            spend(0)
    if valid < 2:
        raise UndecidedError("nowhere defined")
    return sign(apply("/", *lead))
