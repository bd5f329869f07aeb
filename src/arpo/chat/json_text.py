"""Reads the JSON that a model wrote: what it means, what had to be mended, or which character is wrong.

    control characters in a string     accepted and reported as mended: the commonest slip of a tool that takes code
    "arguments": "{...}"               the text of an object is read as the object, and reported as mended
    "arguments": null, "" or missing   no arguments, in every syntax
    a comma or bracket too many or too few, anything else    an error that names the character

Knows JSON. Refuses to know tools, schemas and syntaxes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arpo.core.tree import Call

CONTROL = "control characters inside a string"
QUOTED = "arguments written as text"
ARGUMENTS = ("arguments", "parameters")
IDENTIFIER = re.compile(r"[\w.:-]{1,64}")

_LENIENT, _STRICT = json.JSONDecoder(strict=False), json.JSONDecoder()
_BLANKS = re.compile(r"\s*")
_CONTROLS = re.compile(r"[\x00-\x1f]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PARTS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],]', re.DOTALL)
_CLOSING = {"{": "}", "[": "]"}


class JsonError(ValueError):
    """Why a text is no JSON, in words for the model."""


@dataclass(frozen=True, slots=True)
class JsonValue:
    value: Any
    end: int  # where the text goes on after it
    mended: str = ""


def read_value(text: str, at: int = 0, end: int | None = None) -> JsonValue:
    """The JSON value that begins at `at`, after blanks. `end`: where it should end, for the error's words. Raises
    JsonError."""
    match = _BLANKS.match(text, at)
    start = match.end() if match else at
    try:
        value, after = _LENIENT.raw_decode(text, start)
    except RecursionError as error:
        raise JsonError("brackets are nested too deeply") from error
    except ValueError as error:
        raise JsonError(explained(text[start:end], error)) from error
    written = text[start:after]
    if _SURROGATE.search(written):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except ValueError as error:
            raise JsonError("a \\ud… escape stands for half a character") from error
    return JsonValue(value, after, CONTROL if _has_raw_controls(written) else "")


def _has_raw_controls(written: str) -> bool:
    if not _CONTROLS.search(written):
        return False
    try:
        _STRICT.raw_decode(written)
    except ValueError:
        return True
    return False


def explained(text: str, error: ValueError) -> str:
    """What is wrong with `text`, which JSON's decoder refused with `error`. Positions count characters from 1."""
    opened: list[str] = []
    comma = -1
    for match in _PARTS.finditer(text):
        part, at = match.group(), match.start()
        if part in _CLOSING:
            opened.append(part)
        elif part in ("}", "]"):
            if comma >= 0 and not text[comma + 1 : at].strip():
                return f"the comma before the closing {part} is one too many (character {comma + 1})"
            if not opened:
                return f"the {part} at character {at + 1} closes nothing"
            if (needed := _CLOSING[opened.pop()]) != part:
                return f"a closing {needed} is missing before the {part} at character {at + 1}"
        comma = at if part == "," else -1
        if not opened and part in ("}", "]"):
            break
    if len(opened) == 1:
        return f"a closing {_CLOSING[opened[0]]} is missing at the end"
    if opened:
        return f"{len(opened)} closing brackets are missing at the end"
    if isinstance(error, json.JSONDecodeError):
        near = text[error.pos : error.pos + 12].split("\n")[0]
        return f"{error.msg} at character {error.pos + 1}" + (f", before {near!r}" if near else ", where the text ends")
    return "a number is too long"


def read_arguments(value: object) -> tuple[dict[str, Any], str, str]:
    """The arguments that a call's `arguments` set, what was mended, and an error ("" where there is none): the one rule
    for every syntax and for served models. None and a blank text are no arguments."""
    mended = ""
    if isinstance(value, str):
        if not value.strip():
            return {}, "", ""
        try:
            read = read_value(value)
        except JsonError as error:
            return {}, "", f'"arguments" is not a JSON object: {error}'
        value, mended = (read.value if not value[read.end :].strip() else value), read.mended or QUOTED
    if value is None:
        return {}, mended, ""
    if not isinstance(value, dict):
        return {}, "", '"arguments" is not a JSON object'
    return value, mended, ""


def call_of(value: object, mended: str = "") -> Call | None:
    """The call that an object with a name and arguments makes (keys as in any of the syntaxes); None where it has no
    name."""
    if not isinstance(value, Mapping):
        return None
    function = value.get("function")
    if isinstance(function, Mapping):
        value = {**value, **function}
    name = value.get("name", value.get("tool_name"))
    if not isinstance(name, str) or not name:
        return None
    written = next((value[key] for key in ARGUMENTS if key in value), None)
    arguments, also, error = read_arguments(written)
    return Call(
        name=name,
        arguments=arguments,
        error=error,
        id=identifier(value.get("id", value.get("tool_call_id"))),
        mended=mended or also,
    )


def identifier(value: object) -> str:
    """`value` if it can identify a call, else ""."""
    return value if isinstance(value, str) and IDENTIFIER.fullmatch(value) else ""


def read_object(text: str) -> dict[str, Any] | None:
    """`text` as a JSON object; None for anything else, and for an object that contains a lone surrogate."""
    try:
        read = read_value(text)
    except JsonError:
        return None
    return read.value if isinstance(read.value, dict) and not text[read.end :].strip() else None
