r"""The grammar of expressions: sums, products, powers, fractions, roots, functions, names. A recursive descent that
reads every token or raises UnreadableError.

    sum      = sign* product (("+" | "-") sign* product)*
    product  = power ((times | "/")? power)*          a number never follows a factor without a sign between them
    power    = atom mark* ("^" exponent)?             marks: ! !! ' degrees
    atom     = number | name | "(" sum ")" | \frac | \sqrt | function | |sum| | \sum | determinant

Refuses to know what an answer consists of besides expressions: `reader` does, and reads what stands in brackets.
"""

from fractions import Fraction

from arpo.answer_text import vocabulary
from arpo.rewards.maths.equality import FUNCTIONS
from arpo.rewards.maths.expressions import Expr, apply, minus, num, substitute, sym
from arpo.rewards.maths.names import NameReader
from arpo.rewards.maths.tokens import Token, UnreadableError
from arpo.rewards.maths.units import unit_name
from arpo.rewards.maths.values import Matrix, Number, Value

MAX_DEPTH = 60
MAX_TERMS = 2_000  # of \sum and \prod
GREEK = vocabulary(
    """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega
    Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar"""
)
ACCENTS = vocabulary(
    """overline vec hat bar tilde overrightarrow overleftarrow underline widehat dot ddot mathbf mathcal mathfrak
    mathscr bm"""
)
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
LISTED = frozenset(("gcd", "lcm", "max", "min"))
TIMES = frozenset(("cdot", "times", "*"))
OVER = frozenset(("/", "div"))


class TermReader(NameReader):
    """Reads expressions from tokens."""

    def bracketed(self) -> Value:
        """What stands in brackets, read by the grammar of answers."""
        raise NotImplementedError

    def matrix(self) -> Value:
        raise NotImplementedError

    def expression(self, value: Value) -> Expr:
        if isinstance(value, Number) and value.unit in ("", "°"):
            return apply("deg", value.expr) if value.unit else value.expr
        raise UnreadableError("not an expression")

    # --- sums and products

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        total = self.signed()
        while self.is_mark("+", "-"):
            operator = self.take().text
            right = self.expression(self.signed())
            left = self.expression(total)
            total = Number(apply("+", left, right) if operator == "+" else minus(left, right))
        self.depth -= 1
        return total

    def signed(self) -> Value:
        negative = False
        while self.is_mark("+", "-"):
            negative ^= self.take().text == "-"
        value = self.product()
        if not negative:
            return value
        return Number(apply("neg", self.expression(value)), base=value.base if isinstance(value, Number) else 0)

    def product(self) -> Value:
        first = self.power()
        while True:
            before = self.tokens[self.at - 1]
            if self.peek().text in ("C", "F") and isinstance(first, Number) and first.expr.op == "deg":
                return first  # degrees Celsius
            if self.is_mark(*TIMES, *OVER):
                over = self.take().text in OVER
                sign = -1 if self.skip("-") else 1
                right = self.expression(self.power())
                left = self.expression(first)
                right = apply("neg", right) if sign < 0 else right
                first = Number(apply("/" if over else "*", left, right))
            elif self.starts_factor():
                first = Number(self.beside(self.expression(first), before))
            else:
                return first

    def beside(self, left: Expr, before: Token) -> Expr:
        """A factor without a sign before it: 2x, or the fraction of a mixed number."""
        whole = left if before.kind == "number" and left.op == "num" and left.value.denominator == 1 else None
        if self.peek().kind == "number":
            top, bar, bottom = self.peek(), self.peek(1), self.peek(2)
            if before.text in ("!", "!!", ")"):
                return apply("*", left, self.expression(self.power()))
            written = whole is not None and top.spaced and bar.text == "/" and bottom.kind == "number"
            if not written or not self._proper(top.value, bottom.value):
                raise UnreadableError("two numbers without a sign between them")
            self.at += 3
            return num(left.value + top.value / bottom.value)
        is_fraction = self.is_mark("frac")
        right = self.expression(self.power())
        if whole is not None and is_fraction and right.op == "/" and all(arg.op == "num" for arg in right.args):
            if not self._proper(right.args[0].value, right.args[1].value):
                raise UnreadableError("a mixed number of an improper fraction")
            return num(left.value + right.args[0].value / right.args[1].value)
        return apply("*", left, right)

    @staticmethod
    def _proper(top: Fraction, bottom: Fraction) -> bool:
        return top.denominator == bottom.denominator == 1 and 0 < top < bottom

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind == "letter" and token.roman and unit_name(token.text, letter=True):
            return self.tokens[self.at - 1].kind not in ("number", "mark")  # 3 m
        if token.kind in ("number", "letter"):
            return True
        if token.text == "(" and self.peek(1).text in ("mod", "bmod"):
            return False
        if token.kind == "mark":
            return token.text in ("(", "{") or (token.text == "|" and not self.bars)
        names = ("frac", "sqrt", "binom", "pi", "lfloor", "lceil", "sum", "prod", "angle", "triangle", "infty", *LISTED)
        return token.kind == "command" and token.text in {*names, *GREEK, *FUNCTIONS, *ACCENTS}

    # --- powers and atoms

    def power(self) -> Value:
        value = self.atom()
        while True:
            if self.skip("!"):
                value = Number(apply("!", self.expression(value)))
            elif self.skip("!!"):
                value = Number(apply("!!", self.expression(value)))
            elif self.is_degree():
                value = Number(self.degrees(self.expression(value)))
            elif self.skip("^"):
                value = Number(apply("^", self.expression(value), self.exponent()))
            else:
                return value

    def is_degree(self) -> bool:
        if self.is_mark("degree"):
            return True
        braced = self.is_mark("{", ahead=1) and self.is_mark("circ", ahead=2) and self.is_mark("}", ahead=3)
        return self.is_mark("^") and (self.is_mark("circ", ahead=1) or braced)

    def degrees(self, value: Expr) -> Expr:
        self.at += 1 if self.is_mark("degree") else 2 if self.is_mark("circ", ahead=1) else 4
        for mark, size in (("'", 60), ("''", 3600)):  # 45 degrees 30 minutes
            if self.peek().kind == "number" and self.is_mark(mark, ahead=1):
                value = apply("+", value, num(self.take().value / size))
                self.at += 1
        return apply("deg", value)

    def exponent(self) -> Expr:
        negative = self.skip("-")
        if self.is_mark("{", "("):
            value = self.group()
        elif self.peek().kind == "number":
            value = num(self.take().value)
            if self.skip("^"):
                value = apply("^", value, self.exponent())
        else:
            value = self.expression(self.atom())
        return apply("neg", value) if negative else value

    def group(self) -> Expr:
        """An expression in braces or round brackets."""
        if self.is_mark("("):
            return self.expression(self.bracketed())
        self.expect("{")
        bars, self.bars = self.bars, 0
        value = self.expression(self.sum())
        if self.skip("choose"):
            value = apply("binom", value, self.expression(self.sum()))
        self.expect("}")
        self.bars = bars
        return value

    def argument(self) -> Expr:
        r"""The argument of \frac and \sqrt: a group, or one digit, letter or command."""
        token = self.peek()
        if self.is_mark("{", "("):
            return self.group()
        if token.kind == "number" and token.text.isdecimal() and len(token.text) > 1:
            rest = token.text[1:]
            self.tokens[self.at] = Token("number", rest, Fraction(rest))
            return num(int(token.text[0]))
        if token.kind in ("number", "letter", "command"):
            return self.expression(self.atom())
        raise UnreadableError(f"{token.text!r} is no argument")

    def atom(self) -> Value:
        token = self.peek()
        if token.kind == "number":
            return Number(num(self.take().value), base=token.base)
        if token.kind == "letter":
            return Number(self.name(self.take().text))
        if token.kind == "mark":
            if token.text in ("(", "[", "]", "lbrace"):
                return self.bracketed()
            if token.text == "{":
                return Number(self.group())
            if token.text in ("|", "norm"):
                return Number(self.absolute())
        if token.kind == "command":
            return self.command()
        raise UnreadableError(f"{token.text!r} starts no expression")

    def absolute(self) -> Expr:
        bar = self.take().text
        self.bars += 1
        inside = self.expression(self.sum())
        self.bars -= 1
        self.expect(bar)
        return apply("abs", inside)

    def command(self) -> Value:
        name = self.peek().text
        if name in ("begin", "mathbb", "emptyset", "langle"):
            return self.bracketed() if name != "begin" else self._determinant_or_matrix()
        self.at += 1
        if name in FUNCTIONS and name not in ("root", "binom", "floor", "ceil", "deg"):
            return Number(self.function(name))
        if name in ("frac", "binom"):
            top = self.argument()
            return Number(apply("/" if name == "frac" else "binom", top, self.argument()))
        if name == "sqrt":
            degree = num(2)
            if self.skip("["):
                degree = self.expression(self.sum())
                self.expect("]")
            return Number(apply("root", self.argument(), degree))
        if name in ("lfloor", "lceil"):
            inside = self.expression(self.sum())
            self.expect("r" + name[1:])
            return Number(apply("floor" if name == "lfloor" else "ceil", inside))
        if name in LISTED:
            return Number(apply(name, *self.listed()))
        if name in ("sum", "prod"):
            return Number(self.repeated("+" if name == "sum" else "*"))
        if name == "cis":
            turn = self.function_argument()
            return Number(apply("+", apply("cos", turn), apply("*", sym("i"), apply("sin", turn))))
        if name in ("angle", "triangle") and self.peek().kind == "letter":
            return Number(sym(f"{name} {self.take().text}"))
        if name in ACCENTS:
            return Number(self.name(f"{name}{{{self.raw_argument()}}}"))
        if name in GREEK or name in ("pi", "infty"):
            return Number(self.name(name))
        raise UnreadableError(f"\\{name} is not known")

    def _determinant_or_matrix(self) -> Value:
        value = self.matrix()
        if isinstance(value, Matrix) or not isinstance(value, Number):
            return value
        return value

    # --- functions, sums

    def function(self, name: str) -> Expr:
        power: Expr | None = None
        base: Expr | None = None
        if self.skip("_"):
            if name != "log":
                raise UnreadableError("an index of a function")
            base = self.argument()
        if self.skip("^"):
            power = self.exponent()
            if power == apply("neg", num(1)):
                if name not in INVERSES:
                    raise UnreadableError("an inverse")
                name, power = INVERSES[name], None
        argument = self.function_argument()
        if name == "log":
            value = apply("log", base or num(10), argument)
        elif name == "exp":
            value = apply("^", sym("e"), argument)
        else:
            value = apply(name, argument)
        return value if power is None else apply("^", value, power)

    def function_argument(self) -> Expr:
        r"""One bracket, or the factors that follow: \sin 2x, \cos\frac{\pi}{5}. Ends before another function."""
        if self.is_mark("(", "{"):
            return self.group()
        value = self.expression(self.power())
        while self.starts_factor() and self.peek().text not in FUNCTIONS and not self.is_mark("("):
            value = self.beside(value, self.tokens[self.at - 1])
        return value

    def listed(self) -> list[Expr]:
        closing = {"(": ")", "lbrace": "rbrace", "{": "}"}[self.expect("(", "lbrace", "{")]
        items = [self.expression(self.sum())]
        while self.skip(","):
            items.append(self.expression(self.sum()))
        self.expect(closing)
        return items

    def repeated(self, operator: str) -> Expr:
        r"""\sum_{k=1}^{10} k, written out. Infinite sums are not read."""
        self.expect("_")
        self.expect("{")
        variable = self.take()
        self.expect("=")
        low = self.expression(self.sum())
        self.expect("}")
        self.expect("^")
        high = self.exponent()
        body = self.expression(self.product())
        if variable.kind != "letter" or low.op != "num" or high.op != "num":
            raise UnreadableError("limits that are no numbers")
        if not 0 <= high.value - low.value < MAX_TERMS or low.value.denominator * high.value.denominator != 1:
            raise UnreadableError("too many terms")
        numbers = range(int(low.value), int(high.value) + 1)
        terms = [substitute(body, {variable.text: num(at)}) for at in numbers]
        if operator == "+":
            return apply("+", *terms)
        product = terms[0]
        for term in terms[1:]:
            product = apply("*", product, term)
        return product
