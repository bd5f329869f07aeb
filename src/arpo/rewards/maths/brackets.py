r"""The grammar of what stands in brackets: tuples, intervals, sets, matrices, cases, determinants."""

from arpo.rewards.maths.expressions import Expr, apply, minus, num
from arpo.rewards.maths.regions import REALS, interval
from arpo.rewards.maths.statements import combined
from arpo.rewards.maths.terms import TermReader
from arpo.rewards.maths.tokens import UnreadableError
from arpo.rewards.maths.values import Collection, Condition, Matrix, Number, Relation, Text, Value


class BracketReader(TermReader):
    """Reads values in brackets; `items` and `item` come from the grammar of answers."""

    def items(self, closing: tuple[str, ...] = ()) -> Value:
        raise NotImplementedError

    def item(self) -> Value:
        raise NotImplementedError

    def bracketed(self) -> Value:
        self.depth += 1
        bars, self.bars = self.bars, 0
        if self.depth > 60:
            raise UnreadableError("nested too deeply")
        value = self._bracketed()
        self.depth -= 1
        self.bars = bars
        return value

    def _bracketed(self) -> Value:
        opening = self.take().text
        if opening == "emptyset":
            return Collection("{}", ())
        if opening == "mathbb":
            return self.number_set()
        if opening == "langle":
            return self.collection("<", ("rangle",))
        if opening == "lbrace":
            return self.set_builder() or self.collection("{", ("rbrace",))
        return self.collection(opening, (")", "]") if opening != "]" else ("]", "["))

    def collection(self, opening: str, closings: tuple[str, ...]) -> Value:
        if opening == "{" and self.skip(*closings):
            return Collection("{}", ())
        value = self.items(closings)
        closing = self.expect(*closings, *(("[",) if opening == "[" else ()))
        items = value.items if isinstance(value, Collection) and value.kind == "list" else None
        if items is None and opening == "(" and closing == ")":
            return value  # brackets of an expression
        if isinstance(value, Collection) and value.kind == "dots":
            return value if opening == "{" else Collection("dots", (Text(opening), *value.items))
        left = {"]": "(", "[": "[", "(": "(", "{": "{", "<": "<"}[opening]
        right = {"rbrace": "}", "rangle": ">", ")": ")"}.get(closing, ")" if closing == "[" else "]")
        if isinstance(value, Condition | Relation) or (isinstance(value, Collection) and value.kind == "all"):
            raise UnreadableError("statements in brackets")
        return Collection(left + right, (value,) if items is None else items)

    def set_builder(self) -> Value | None:
        r"""{x : x > 2}, {x \in \mathbb{R} \mid x > 2}; None if no such set starts here."""
        start = self.at
        name = self.take()
        domain: Value | None = None
        if name.kind == "letter" and self.skip("in"):
            domain = self.bracketed() if self.is_mark("mathbb") else None
        if name.kind != "letter" or not self.skip(":", "mid", "|"):
            self.at = start
            return None
        value = self.items(("rbrace",))
        self.expect("rbrace")
        if not isinstance(value, Condition) or value.name != name.text or domain not in (None, REALS):
            raise UnreadableError("a set of something else than real numbers")
        return value

    def number_set(self) -> Value:
        letter = self.raw_argument()
        if not self.skip("^"):
            return REALS if letter == "R" else Text(f"mathbb {letter}")
        sign = self.take().text if not self.is_mark("{") else self.raw_argument()
        if letter == "R" and sign in ("+", "-"):
            return interval(num(0), None) if sign == "+" else interval(None, num(0))
        return Text(f"mathbb {letter}^{sign}")

    def matrix(self) -> Value:
        self.expect("begin")
        name = self.raw_argument().replace(" ", "")
        if name == "array":
            self.raw_argument()
        rows: list[tuple[Value, ...]] = []
        row: list[Value] = []
        while not self.is_mark("end"):
            row.append(self.case() if name == "cases" and row else self.item())
            self.skip(",", ".")
            if self.skip("&"):
                continue
            rows.append(tuple(row))
            row = []
            if not self.skip("\\\\") and not self.is_mark("end"):
                raise UnreadableError("a matrix without end")
        self.at += 1
        if self.raw_argument().replace(" ", "") != name or row or not rows:
            raise UnreadableError("a matrix without end")
        if name == "vmatrix":
            return Number(self.determinant([[self.expression(cell) for cell in row] for row in rows]))
        if name in ("cases", "aligned", "array") and all(len(row) == 1 for row in rows) and name != "array":
            return combined([row[0] for row in rows], False)
        if name == "cases":
            return Collection("cases", tuple(Collection("()", row) for row in rows))
        if name not in ("pmatrix", "bmatrix", "matrix", "array", "Bmatrix", "smallmatrix"):
            raise UnreadableError(f"{name} is not known")
        return Matrix(tuple(rows))

    def case(self) -> Value:
        r"""What holds in a row of cases: `x > 0`, \text{if } x > 0, \text{otherwise}."""
        if self.peek().kind == "word" and self.peek().text in ("otherwise", "else", "elsewhere"):
            self.take()
            return Text("otherwise")
        if self.peek().kind == "word" and self.peek().text in ("if", "for", "when", "where"):
            self.take()
        return self.item()

    def determinant(self, rows: list[list[Expr]]) -> Expr:
        if len(rows) > 5 or any(len(row) != len(rows) for row in rows):
            raise UnreadableError("a determinant")
        if len(rows) == 1:
            return rows[0][0]
        total = num(0)
        for at, head in enumerate(rows[0]):
            minor = self.determinant([[*row[:at], *row[at + 1 :]] for row in rows[1:]])
            term = apply("*", head, minor)
            total = minus(total, term) if at % 2 else apply("+", total, term)
        return total
