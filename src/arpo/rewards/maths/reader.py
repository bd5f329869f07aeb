r"""Reads an answer of mathematics to its end: a value (`values`) of its tokens, or UnreadableError.

    answer   = lead? item ((","|";"|and|or) item)*
    item     = side (relation side)*                   = < > \le \in \ne
    side     = sum unit? | set (\cup|\cap|\setminus set)* | a : b | words
    lead     = "the answer is", "so", ...: words that say nothing about the value

Words that are not in a list make the whole answer unreadable: they may deny, limit or change the number.
"""

from functools import lru_cache

from arpo.rewards.maths.brackets import BracketReader
from arpo.rewards.maths.expressions import Expr, apply, num
from arpo.rewards.maths.regions import EMPTY, INFINITY, REALS
from arpo.rewards.maths.statements import chain, combined, set_operation
from arpo.rewards.maths.tokens import Token, UnreadableError, tokenize
from arpo.rewards.maths.units import LEADS, POWERS, WORD_SCALES, spelled, unit_name
from arpo.rewards.maths.values import (
    Choice,
    Collection,
    Equation,
    Number,
    Ratio,
    Text,
    Value,
)
from arpo.rewards.quantities import han_number

CURRENCIES = {"usd": "usd", "€": "eur", "£": "gbp", "¥": "cny"}
RELATIONS = ("=", "<", ">", "le", "ge", "ne", "in", "equiv")
LETTERS = frozenset("ABCDEFGHIJ")
SETS = {
    "no solution": EMPTY,
    "no solutions": EMPTY,
    "no real solutions": EMPTY,
    "no real solution": EMPTY,
    "empty set": EMPTY,
    "all real numbers": REALS,
    "all reals": REALS,
}
ARTICLES = ("a", "an", "the")


@lru_cache(maxsize=20_000)
def read(text: str) -> Value:
    """The value of an answer. Raises UnreadableError, and UndecidedError for a value that takes too long."""
    return read_tokens(tokenize(text))


def read_tokens(tokens: tuple[Token, ...]) -> Value:
    if not any(_is_either(token) for token in tokens):
        return AnswerReader(tokens).whole()
    if _two_in_one_item(tokens):
        raise UnreadableError("two signs that may go together or not")
    upper, lower = (
        AnswerReader(
            tuple(
                Token("mark", "+" if (token.text == "pm") == plus else "-", spaced=token.spaced)
                if _is_either(token)
                else token
                for token in tokens
            )
        ).whole()
        for plus in (True, False)
    )
    return _both(upper, lower)


def _is_either(token: Token) -> bool:
    return token.kind == "command" and token.text in ("pm", "mp")


def _two_in_one_item(tokens: tuple[Token, ...]) -> bool:
    count = 0
    for token in tokens:
        count = 0 if token.text in (",", ";", "or", "and") else count + (_is_either(token) and token.text == "pm")
        if count > 1:
            return True
    return False


def _both(upper: Value, lower: Value) -> Value:
    if isinstance(upper, Equation) and isinstance(lower, Equation) and upper.left == lower.left:
        return Equation(upper.left, _both(upper.right, lower.right))
    items: list[Value] = []
    for value in (upper, lower):
        items += value.items if isinstance(value, Collection) and value.kind in ("list", "{}") else [value]
    return Collection("list", tuple(items))


class AnswerReader(BracketReader):
    """Reads one answer from its tokens."""

    def whole(self) -> Value:
        if (choice := self.choice()) is not None:
            return choice
        if len(self.tokens) == 2 and self.peek().kind == "number" and self.peek(1).spaced:  # 42 m
            name = unit_name(self.peek(1).text, letter=self.peek(1).kind == "letter")
            if name is not None and self.peek(1).text in "mgshL":
                return Number(num(self.peek().value), name)
        words = [token.text for token in self.tokens if token.kind == "word"]
        if len(words) == len(self.tokens):
            return _words(words)
        self.lead()
        value = self.items()
        if self.peek().kind != "end":
            raise UnreadableError(f"{self.peek().text!r} is left over")
        return value

    def lead(self) -> None:
        while self.peek().kind == "word" and self.peek().text in LEADS:
            self.at += 1
            self.skip(",", ":")
        self.skip("=", "approx", "~")

    def choice(self) -> Value | None:
        """(B), (B) 12, B. 12; a bare letter stays a name."""
        marks = [token.text for token in self.tokens[:3]]
        if len(marks) >= 3 and marks[0] == "(" and marks[1] in LETTERS and marks[2] == ")":
            rest = self.tokens[3:]
        elif len(marks) >= 2 and marks[0] in LETTERS and marks[1] in (")", ".", ":") and len(self.tokens) > 2:
            marks, rest = ["", marks[0]], self.tokens[2:]
        else:
            return None
        if not rest:
            return Choice(marks[1])
        if not rest[0].spaced and not self.tokens[1].roman and marks[0]:
            return None
        return Choice(marks[1], read_tokens(tuple(rest)))

    # --- items

    def items(self, closing: tuple[str, ...] = ()) -> Value:
        """Items up to the end, or before one of the brackets `closing`."""
        items, joins, dots = [self.item()], set(), False
        while (join := self.separator()) is not None:
            if closing and self.is_mark(*closing):
                break  # {1,}
            if self.skip("ldots"):
                dots = True
                items.append(Text("..."))
                continue
            joins.add(join)
            items.append(self.item())
        if dots:
            return Collection("dots", tuple(items))
        return combined(items, "or" in joins)

    def separator(self) -> str | None:
        token = self.peek()
        is_word = token.kind == "word" and token.text in ("and", "or")
        if not is_word and not self.is_mark(",", ";"):
            return None
        self.at += 1
        join = token.text
        if join in (",", ";") and self.peek().kind == "word" and self.peek().text in ("and", "or"):
            join = self.take().text
        return join

    def item(self) -> Value:
        sides, relations = [self.side()], []
        while (relation := self.relation()) is not None:
            relations.append(relation)
            sides.append(self.side())
        return chain(sides, relations, self.modulus()) if relations or self.is_modulus() else sides[0]

    def relation(self) -> str | None:
        if self.peek().kind == "word" and self.peek().text in ("is", "equals"):
            self.at += 1
            return "="
        if self.skip("approx"):
            return "="
        return self.take().text if self.is_mark(*RELATIONS) else None

    def is_modulus(self) -> bool:
        return self.is_mark("pmod") or (self.is_mark("(") and self.peek(1).text in ("mod", "bmod"))

    def modulus(self) -> Expr | None:
        if self.skip("pmod"):
            return self.argument()
        if self.is_mark("(") and self.peek(1).text in ("mod", "bmod"):
            self.at += 2
            value = self.expression(self.sum())
            self.expect(")")
            return value
        return None

    def side(self) -> Value:
        value = self.operand()
        while self.is_mark("cup", "cap", "setminus"):
            operator = self.take().text
            value = set_operation(operator, value, self.operand())
        return value

    def operand(self) -> Value:
        token = self.peek()
        currency = CURRENCIES.get(token.text, "") if token.kind == "mark" else ""
        if token.kind == "word" and self.peek(1).kind == "number":
            currency = unit_name(token.text) or ""
            currency = currency if currency in CURRENCIES.values() else ""
        if currency:
            self.at += 1
        if self.peek().kind == "word":
            value = self.spelled_number()
        elif self.is_mark("-") and self.peek(1).text in CURRENCIES:
            self.at += 2
            value, currency = Number(apply("neg", self.expression(self.product()))), "usd"
        else:
            value = self.sum()
        colon = self.is_mark(":") or (self.peek().kind == "word" and self.peek().text == "to")
        if colon and isinstance(value, Number) and self.peek(1).kind in ("number", "letter", "command"):
            return self.ratio(value.expr)
        return self.with_unit(value, currency) if isinstance(value, Number) and not value.unit else value

    def ratio(self, first: Expr) -> Value:
        parts, separator = [first], self.peek().text
        while self.peek().text == separator:
            self.at += 1
            parts.append(self.expression(self.product()))
        value = self.with_unit(Number(num(0)), "")
        return Ratio(tuple(parts), value.unit)

    # --- words beside numbers

    def spelled_number(self) -> Value:
        negative = self.peek().text in ("minus", "negative")
        self.at += negative
        words = [self.tokens[at].text for at in range(self.at, self._end_of_words())]
        if negative and not words:
            return Number(apply("neg", self.expression(self.product())))
        read_words = spelled(words)
        if read_words is None and words and (value := han_number(words[0]) if _is_han_number(words[0]) else None):
            read_words = value, 1  # type: ignore[assignment]
        if read_words is None:
            raise UnreadableError(f"{words[:1]} is no number")
        self.at += read_words[1]
        return Number(num(-read_words[0] if negative else read_words[0]))

    def _end_of_words(self) -> int:
        at = self.at
        while at < len(self.tokens) and self.tokens[at].kind == "word":
            at += 1
        return at

    def with_unit(self, value: Number, unit: str) -> Number:
        """The number with the scale and the unit after it."""
        expr = value.expr
        if expr.op == "deg" or (expr.op == "neg" and expr.args[0].op == "deg"):
            inside = expr.args[0] if expr.op == "deg" else apply("neg", expr.args[0].args[0])
            scale = self.peek()
            if scale.text in ("C", "F"):
                self.at += 1
                return Number(inside, "°" + scale.text.casefold())
            expr, unit = inside, "°"
        while self.peek().kind == "word" and self.peek().text in WORD_SCALES:
            expr = apply("*", expr, num(WORD_SCALES[self.take().text]))
        if self.skip("%"):
            unit = _one_unit(unit, "%")
        elif unit and self.peek().text == "per":  # $18 per day
            self.at += 1
            unit = f"{unit}/{self.units()}"
        elif self.is_unit():
            unit = _one_unit(unit, self.units())
        return Number(expr, unit, value.base)

    def is_unit(self) -> bool:
        token = self.peek()
        if token.kind == "word":
            return token.text in POWERS or unit_name(token.text) is not None
        return token.kind == "letter" and token.roman and unit_name(token.text, letter=True) is not None

    def units(self) -> str:
        """One unit, or several over each other: km/h, square metres, dollars per day."""
        parts = [self.unit()]
        while self.peek().text in ("/", "per") and self.peek().kind in ("mark", "word"):
            self.at += 1
            parts.append(self.unit())
        if parts[0] == "°" and len(parts) == 1 and self.peek().kind == "word":
            scale = {"celsius": "c", "fahrenheit": "f"}.get(self.peek().text, "")
            self.at += bool(scale)
            return "°" + scale
        return "/".join(parts)

    def unit(self) -> str:
        power = POWERS.get(self.peek().text, 1)
        self.at += power > 1
        token = self.take()
        name = unit_name(token.text, letter=token.kind == "letter")
        if name is None:
            raise UnreadableError(f"{token.text!r} is no unit")
        if self.is_mark("^") and power == 1:
            self.at += 1
            exponent = self.exponent()
            if exponent.op != "num" or exponent.value not in (2, 3):
                raise UnreadableError("a power of a unit")
            power = int(exponent.value)
        return f"{name}^{power}" if power > 1 else name


def _is_han_number(word: str) -> bool:
    return all(character in "零〇一二两三四五六七八九十百千万亿" for character in word)


def _words(words: list[str]) -> Value:
    text = " ".join(word for word in words if word not in ARTICLES)
    for lead in ("answer is ", "it is ", "答案是"):
        text = text.rpartition(lead)[2]
    if text in SETS:
        return SETS[text]
    if text in ("infinity",):
        return Number(INFINITY)
    reader = AnswerReader(tuple(Token("word", word) for word in text.split()))
    try:
        reader.lead()
        value = reader.items()
        if reader.peek().kind == "end":
            return value
    except UnreadableError:
        pass
    return Text(text)


def _one_unit(before: str, after: str) -> str:
    if before and after and before != after:
        raise UnreadableError("two units")
    return before or after
