"""Holds JSON values against the types of viewer/src/api.ts: a small reader of the part of TypeScript that stands
there."""

import re
from pathlib import Path
from typing import Any

API = Path(__file__).parents[2] / "viewer" / "src" / "api.ts"
_WORD = re.compile(r'\s*(`[^`]*`|"[^"]*"|-?\d+|[A-Za-z_]\w*|\?:|[{}\[\]():;|=<>?,&-])')


class Contract:
    """The interfaces and types of a file. `faults(value, "Run")` lists what does not fit, with its place."""

    def __init__(self, path: Path = API) -> None:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.S)
        self.types: dict[str, Any] = {}
        self._words = _WORD.findall(text)
        self._at = 0
        while self._at < len(self._words):
            self._statement()

    def faults(self, value: Any, name: str) -> list[str]:
        return list(self._check(value, ("name", name), name))

    # --- reading

    def _next(self, expected: str | None = None) -> str:
        word = self._words[self._at]
        assert expected is None or word == expected, (
            f"expected {expected}, found {word} before {self._words[self._at :][:8]}"
        )
        self._at += 1
        return word

    def _is(self, word: str) -> bool:
        if self._at < len(self._words) and self._words[self._at] == word:
            self._at += 1
            return True
        return False

    def _statement(self) -> None:
        self._is("export")
        kind, name = self._next(), self._next()
        if kind == "interface":
            base = self._next() if self._is("extends") else None
            self._next("{")
            self.types[name] = ("object", self._fields(), base)
        else:
            assert kind == "type", kind
            self._next("=")
            self._is("|")
            self.types[name] = self._union()
            self._next(";")

    def _fields(self) -> dict[str, tuple[bool, Any]]:
        fields = {}
        while not self._is("}"):
            if self._is("["):
                self._next(), self._next(":"), self._next("string"), self._next("]"), self._next(":")
                fields["*"] = (True, self._union())
            else:
                name = self._next()
                optional = self._is("?:") or not self._next(":")
                fields[name] = (optional, self._union())
            self._is(";")
        return fields

    def _union(self) -> Any:
        parts = [self._suffixed()]
        while self._is("|"):
            parts.append(self._suffixed())
        return parts[0] if len(parts) == 1 else ("union", parts)

    def _suffixed(self) -> Any:
        found = self._single()
        while self._is("["):
            self._next("]")
            found = ("array", found)
        return found

    def _single(self) -> Any:
        word = self._next()
        if word == "{":
            return ("object", self._fields(), None)
        if word == "(":
            inner = self._union()
            self._next(")")
            return inner
        if word == "[":
            parts = [self._union()]
            while self._is(","):
                parts.append(self._union())
            self._next("]")
            return ("tuple", parts)
        if word.startswith('"'):
            return ("literal", word[1:-1])
        if word.startswith("`"):
            return ("name", "string")
        if word.lstrip("-").isdigit():
            return ("literal", int(word))
        return ("name", word)

    # --- checking

    def _check(self, value: Any, kind: Any, at: str):
        tag = kind[0]
        if tag == "name" and kind[1] in _PLAIN:
            if not _PLAIN[kind[1]](value):
                yield f"{at}: {value!r:.80} is no {kind[1]}"
        elif tag == "name":
            yield from self._check(value, self.types[kind[1]], at)
        elif tag == "literal":
            if value != kind[1] or isinstance(value, bool):
                yield f"{at}: {value!r:.80} is not {kind[1]!r}"
        elif tag == "array":
            if not isinstance(value, list):
                yield f"{at}: {value!r:.80} is no list"
            else:
                for number, item in enumerate(value):
                    yield from self._check(item, kind[1], f"{at}[{number}]")
        elif tag == "tuple":
            if not isinstance(value, list) or len(value) != len(kind[1]):
                yield f"{at}: {value!r:.80} is no tuple of {len(kind[1])}"
        elif tag == "union":
            all_faults = [list(self._check(value, part, at)) for part in kind[1]]
            if all(all_faults):
                yield min(all_faults, key=len)[0]
        else:
            yield from self._object(value, kind, at)

    def _object(self, value: Any, kind: Any, at: str):
        fields = dict(kind[1])
        base = kind[2]
        while base is not None:
            _, more, base = self.types[base]
            fields = {**more, **fields}
        if not isinstance(value, dict):
            yield f"{at}: {value!r:.80} is no object"
            return
        for name, (optional, inner) in fields.items():
            if name != "*" and name not in value and not optional:
                yield f"{at}.{name} is missing"
            elif name in value:
                yield from self._check(value[name], inner, f"{at}.{name}")
        for name in value:
            if name not in fields:
                if "*" not in fields:
                    yield f"{at}.{name} is not in the contract"
                else:
                    yield from self._check(value[name], fields["*"][1], f"{at}[{name!r}]")


_PLAIN = {
    "string": lambda v: isinstance(v, str),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
