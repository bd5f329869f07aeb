"""Going through the tokens of an answer, and the names in it: x, a_{n+1}, x', f(2), C(5,2), f^{-1}(x).

A name and its arguments are one unknown: what f(2) is, nobody says.
"""

from arpo.rewards.maths.expressions import Expr, sym
from arpo.rewards.maths.tokens import Token, UnreadableError

CALLED = frozenset(("f", "g", "O", "Theta", "sigma", "phi", "tau", "mu", "zeta", "Gamma"))


class NameReader:
    """Goes through tokens and reads names. `at` is the next token."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens, self.at, self.depth, self.bars = list(tokens), 0, 0, 0

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("end", "")

    def take(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def is_mark(self, *texts: str, ahead: int = 0) -> bool:
        token = self.peek(ahead)
        return token.kind in ("mark", "command") and token.text in texts

    def skip(self, *texts: str) -> bool:
        if self.is_mark(*texts):
            self.at += 1
            return True
        return False

    def expect(self, *texts: str) -> str:
        if not self.is_mark(*texts):
            raise UnreadableError(f"{self.peek().text!r} instead of {' or '.join(texts)}")
        return self.take().text

    def name(self, text: str) -> Expr:
        r"""A name with its index, primes and arguments: a_{n+1}, x', f(2), C(5,2), f^{-1}(x)."""
        if text in ("pi", "e", "i", "infty"):
            return sym(text)
        if self.skip("_"):
            text += f"_{self.raw_argument()}"
        while self.is_mark("'", "''", "prime") or (self.is_mark("^") and self.is_mark("prime", ahead=1)):
            self.skip("^")
            text += "''" if self.take().text == "''" else "'"
        called = text.rstrip("'") in CALLED or self._is_defined()
        if called and [self.peek(ahead).text for ahead in range(5)] == ["^", "{", "-", "1", "}"]:
            self.at += 5
            text += "^-1"
        if self.is_mark("(") and (called or self._has_comma()):
            text += f"({self.raw_argument()})"
        return sym(text)

    def _is_defined(self) -> bool:
        """True before "(x) =": whatever the letter, this is a function."""
        kinds = [self.peek(ahead) for ahead in range(4)]
        return (kinds[0].text, kinds[2].text, kinds[3].text) == ("(", ")", "=") and kinds[1].kind in (
            "letter",
            "number",
        )

    def _has_comma(self) -> bool:
        depth = 0
        for token in self.tokens[self.at :]:
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if depth == 0:
                return False
            if depth == 1 and token.text == ",":
                return True
        return False

    def raw_argument(self) -> str:
        """The text of one token or group, for the name of something that has no value."""
        opening = self.take()
        if opening.text not in ("{", "("):
            if opening.kind not in ("number", "letter", "word"):
                raise UnreadableError("a name")
            return opening.text
        parts: list[str] = []
        depth = 1
        while True:
            token = self.take()
            if token.kind == "end":
                raise UnreadableError("a bracket is not closed")
            depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(token.text, 0)
            if depth == 0:
                return " ".join(parts)
            parts.append(token.text)
