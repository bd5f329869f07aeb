"""Calls as Python writes them: `[search(query='Lima', n=3), now()]` between `<|tool_call_start|>` and
`<|tool_call_end|>` (LFM2 and 2.5).

LFM2.5's template writes a text in single quotes as it is, without escapes, a mapping as JSON, anything else as Python
does. So a text in single quotes is read as it stands; its end is the quote behind which an argument or the call ends.
A text in double quotes has escapes.
"""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.chat.json_text import CONTROL
from arpo.chat.syntaxes import Reading, Tools, known_name, openings, reading, spaced
from arpo.core.tree import Call

_NAME = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_KEY = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_QUOTE_END = re.compile(r"'(?=\s*(?:,\s*[A-Za-z_]\w*\s*=|\)\s*(?:[,\]]|$|<\|)))")
_DOUBLE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PARTS = re.compile(r"""'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"|[\[{()}\]]""", re.DOTALL)
_BARE = re.compile(r"[^,)\]}\s]+")


class PythonError(ValueError):
    """Why a call is not written as Python writes one."""


@dataclass(frozen=True, slots=True)
class Pythonic:
    name: str
    mark: str
    closing: str

    @property
    def hints(self) -> tuple[str, ...]:
        return (self.mark,)

    def opening(self, text: str) -> str:
        return self.mark if self.mark in text else ""

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        for start in openings(text, self.mark, calls, spans):
            inside = start + len(self.mark)
            close = text.find(self.closing, inside)
            made, error = read_calls(text[inside : close if close >= 0 else len(text)].strip(), tools)
            error = error or (f"a {self.mark} is not closed" if close < 0 else "")
            calls += [*made, Call(name="", error=error)] if error else made
            at = close + len(self.closing) if close >= 0 else len(text)
            spans.append((start, at))
        return reading(text, calls, spans)

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        written = ", ".join(
            f"{call.name}({', '.join(f'{key}={_written(value)}' for key, value in call.arguments.items())})"
            for call in calls
        )
        return f"{self.mark}[{written}]{self.closing}"


def read_calls(text: str, tools: Tools) -> tuple[list[Call], str]:
    """The calls of a text that holds nothing else, with or without brackets around them, up to the first malformed one,
    and what is wrong with that ("" where nothing is)."""
    calls: list[Call] = []
    listed = text.startswith("[")
    at = int(listed)
    try:
        while True:
            call, at = read_call(text, at, tools)
            calls.append(call)
            at = spaced(text, at)
            if not text.startswith(",", at):
                break
            at += 1
    except PythonError as error:
        return calls, str(error)
    if listed and not text.startswith("]", at):
        return calls, f"the list of calls is not closed with ] (character {at + 1})"
    left = text[at + listed :].strip()
    return calls, f"{left[:20]!r} stands behind the calls" if left else ""


def read_call(text: str, at: int, tools: Tools) -> tuple[Call, int]:
    """The call that begins at `at`, and where it ends. Raises PythonError."""
    begin = _NAME.match(text, at)
    if begin is None:
        raise PythonError(f"a call is written as name(argument='value'), not {text[at : at + 20]!r}")
    arguments: dict[str, object] = {}
    mended, end = "", spaced(text, begin.end())
    while not text.startswith(")", end):
        key = _KEY.match(text, end)
        if key is None:
            raise PythonError(f"{begin[1]} takes arguments by name: argument='value', not {text[end : end + 20]!r}")
        arguments[key[1]], end, slip = _value(text, key.end())
        mended = mended or slip
        end = spaced(text, end)
        if text.startswith(",", end):
            end = spaced(text, end + 1)
        elif not text.startswith(")", end):
            raise PythonError(f"the call of {begin[1]} is not closed with )")
    return Call(name=known_name(begin[1], tools), arguments=arguments, mended=mended), end + 1


def _value(text: str, at: int) -> tuple[object, int, str]:
    """The value at `at`, where it ends, and what was mended."""
    if text.startswith("'", at):
        end = _QUOTE_END.search(text, at + 1)
        if end is None:
            raise PythonError("a text is not closed with '")
        return text[at + 1 : end.start()], end.end(), ""
    if text.startswith('"', at):
        match = _DOUBLE.match(text, at)
        if match is None:
            raise PythonError('a text is not closed with "')
        return _literal(match.group()), match.end(), CONTROL if "\n" in match.group() else ""
    if text.startswith(("[", "{", "("), at):
        closed = _closed(text, at)
        return _literal(text[at:closed]), closed, ""
    bare = _BARE.match(text, at)
    if bare is None:
        raise PythonError(f"a value is missing at character {at + 1}")
    return _literal(bare.group()), bare.end(), ""


def _closed(text: str, at: int) -> int:
    """Where the bracket at `at` is closed."""
    depth = 0
    for match in _PARTS.finditer(text, at):
        if match.group() in "[{(":
            depth += 1
        elif match.group() in "]})":
            depth -= 1
            if depth == 0:
                return match.end()
    raise PythonError(f"the {text[at]} at character {at + 1} is not closed")


def _literal(text: str) -> object:
    """The value of a JSON or Python literal."""
    try:
        value: object = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise PythonError(f"{text[:20]!r} is no value") from error
    if isinstance(value, str) and "\\" not in text:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:
        raise PythonError(f"{text[:20]!r} is no value that a tool can take") from error
    return value


def _written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | dict) else repr(value)


LFM = Pythonic("lfm", "<|tool_call_start|>", "<|tool_call_end|>")
