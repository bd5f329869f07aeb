"""Gemma 4's calls: `<|tool_call>call:search{n:3,query:<|"|>Lima<|"|>}<tool_call|>`.

A text stands between `<|"|>`, as it is; keys are bare. The template leaves `<|"|>` in a text alone, so such a text
cannot be carried.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arpo.chat.json_text import JsonError, read_value
from arpo.chat.syntaxes import Reading, Tools, known_name, openings, reading, spaced
from arpo.core.tree import Call

MARK, CLOSING, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_HEAD = re.compile(r"\s*call:([^{}\s<]+)\s*\{")
_KEY = re.compile(r"\s*([^:{}\[\],<]+?)\s*:")
_BARE = re.compile(r"[^,\[\]{}<\s]+")
_WORDS = {"None": None, "null": None, "true": True, "True": True, "false": False, "False": False}
DEEPEST = 100  # brackets inside brackets


class GemmaError(ValueError):
    """Why a call is not written as Gemma writes one."""


@dataclass(frozen=True, slots=True)
class Gemma:
    name: str = "gemma"

    @property
    def hints(self) -> tuple[str, ...]:
        return (MARK,)

    def opening(self, text: str) -> str:
        return MARK if MARK in text else ""

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        for start in openings(text, MARK, calls, spans):
            head = _HEAD.match(text, start + len(MARK))
            name = known_name(head[1], tools) if head else ""
            try:
                if head is None:
                    raise GemmaError(f"a call is written as {MARK}call:name{{argument:value}}{CLOSING}")
                arguments, end = _object(text, head.end(), 0)
                end = spaced(text, end)
                if not text.startswith(CLOSING, end):
                    raise GemmaError(f"a {MARK} is not closed")
                calls.append(Call(name=name, arguments=arguments))
                at = end + len(CLOSING)
            except GemmaError as error:
                calls.append(Call(name=name, error=str(error)))
                close = text.find(CLOSING, start)
                at = len(text) if close < 0 else close + len(CLOSING)
            spans.append((start, at))
        return reading(text, calls, spans)

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        return "".join(f"{MARK}call:{call.name}{_written(call.arguments)}{CLOSING}" for call in calls)


def _value(text: str, at: int, depth: int) -> tuple[object, int]:
    at = spaced(text, at)
    if depth > DEEPEST:
        raise GemmaError("brackets are nested too deeply")
    if text.startswith(QUOTE, at):
        return _quoted(text, at)
    if text.startswith("{", at):
        return _object(text, at + 1, depth + 1)
    if text.startswith("[", at):
        return _list(text, at + 1, depth + 1)
    if text.startswith('"', at):  # a slip: JSON's own quotes
        try:
            read = read_value(text, at)
        except JsonError as error:
            raise GemmaError(str(error)) from error
        return read.value, read.end
    bare = _BARE.match(text, at)
    if bare is None:
        raise GemmaError(f"a value is missing, where {text[at : at + 12]!r} stands")
    word = bare.group()
    if word in _WORDS:
        return _WORDS[word], bare.end()
    try:
        read = read_value(word)
    except JsonError as error:
        raise GemmaError(f"{word[:20]!r} is no value: a text stands between {QUOTE}") from error
    if read.end != len(word):
        raise GemmaError(f"{word[:20]!r} is no value: a text stands between {QUOTE}")
    return read.value, bare.end()


def _quoted(text: str, at: int) -> tuple[str, int]:
    start = at + len(QUOTE)
    end = text.find(QUOTE, start)
    if end < 0:
        raise GemmaError(f"a text is not closed with {QUOTE}")
    return text[start:end], end + len(QUOTE)


def _object(text: str, at: int, depth: int) -> tuple[dict[str, object], int]:
    values: dict[str, object] = {}
    at = spaced(text, at)
    while not text.startswith("}", at):
        if text.startswith(QUOTE, at):
            key, at = _quoted(text, at)
            at = spaced(text, at)
            if not text.startswith(":", at):
                raise GemmaError(f"a : is missing behind {key[:20]!r}")
            at += 1
        else:
            match = _KEY.match(text, at)
            if match is None:
                raise GemmaError(f"a closing }} is missing, where {text[at : at + 12]!r} stands")
            key, at = match[1], match.end()
        values[key], at = _value(text, at, depth)
        at = spaced(text, at)
        if text.startswith(",", at):
            at = spaced(text, at + 1)
    return values, at + 1


def _list(text: str, at: int, depth: int) -> tuple[list[object], int]:
    values: list[object] = []
    at = spaced(text, at)
    while not text.startswith("]", at):
        value, at = _value(text, at, depth)
        values.append(value)
        at = spaced(text, at)
        if text.startswith(",", at):
            at = spaced(text, at + 1)
    return values, at + 1


def _written(value: object) -> str:
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in sorted(value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)


GEMMA = Gemma()
