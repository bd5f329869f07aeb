"""Reads files that somebody else may have made: within limits of size, and never from a device or a pipe. Checks that
values made of them have the types that their fields say.

Knows files, JSON and dataclasses. Refuses to know what they mean. What is wrong is a FormatError.
"""

import json
import os
import stat
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from arpo.errors import FormatError

MOST_BYTES = 32 << 20  # of a JSON file, or of a line of one
WHOLE_BYTES = 256 << 20  # of a tokenizer, of the list of tensors in a file of weights, of a document
MOST_VALUES = 8_000_000  # in a JSON text: an empty list in it takes 2 bytes, and 56 of memory
MOST_NUMBER = 1e100  # sums and squares of such numbers are finite
MOST_WHOLE = 1 << 63  # what numpy and SQLite take

T = TypeVar("T")


def open_file(path: Path | str, most_bytes: int | None = None) -> BinaryIO:
    """The file, opened for reading. Raises FormatError for a device, a pipe or a folder, and for one with more than
    `most_bytes`; FileNotFoundError and other OSErrors as they are."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe waits for nobody
    status = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a file"
    elif most_bytes is not None and status.st_size > most_bytes:
        problem = f"has {status.st_size:,} bytes, and at most {most_bytes:,} are read"
    if problem:
        os.close(descriptor)
        raise FormatError(f"{path} {problem}")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path | str, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file of at most `most_bytes`. Raises like `open_file`."""
    with open_file(path, most_bytes) as file:
        return file.read(most_bytes + 1)[:most_bytes]


def read_text(path: Path | str, most_bytes: int = MOST_BYTES) -> str:
    """The same as text. Raises FormatError for what is not UTF-8."""
    try:
        return read_file(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def lines(path: Path | str, most_bytes: int = MOST_BYTES) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1. Raises like `open_file`, and FormatError for a longer line."""
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(most_bytes), b""), 1):
            if len(line) == most_bytes:
                raise FormatError(f"{path}, line {number} has more than {most_bytes:,} bytes")
            yield number, line


def loads(text: bytes) -> Any:
    """The JSON value. Raises ValueError for what is none, is nested too deeply, or would take too much memory."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_number(value: object) -> TypeGuard[float]:
    """True for a number that means, plots and formats can take. NaN is one: it stands for what is not known."""
    return (type(value) is float and not abs(value) >= MOST_NUMBER) or _is_whole(value)


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < MOST_WHOLE


def checked(value: T) -> T:
    """`value`, a dataclass that was made of JSON, if every field has the type that its annotation says, all the way
    down. Raises FormatError, which names the field and what it holds."""
    for name, hint, fits in _fields(type(value)):  # type: ignore[arg-type]
        if not fits(content := getattr(value, name)):
            kind = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            raise FormatError(f"{type(value).__name__}.{name} is {content!r:.80}, which is no {kind}")
    return value


def check_values(values: Mapping[str, Any], kinds: Mapping[str, Any], place: str) -> None:
    """Raises FormatError, which names `place` and the key, where one of the `values` is not of its kind (an annotation,
    all the way down). Keys may be missing."""
    for key, kind in kinds.items():
        if key in values and not _test(kind)(values[key]):
            raise FormatError(f"{place}: {key} is {values[key]!r:.80}, which is no {kind}")


@cache
def _fields(kind: type) -> list[tuple[str, Any, Callable[[Any], bool]]]:
    hints = get_type_hints(kind, localns={"array": Sequence})  # `array[int]` has a value from Python 3.12 on
    return [(field.name, hints[field.name], _test(hints[field.name])) for field in fields(kind)]


@cache
def _test(hint: Any) -> Callable[[Any], bool]:
    """The test whether a value is what `hint` says."""
    origin, parts = get_origin(hint), get_args(hint)
    kind = origin or hint
    if origin in (Union, UnionType):
        tests = [_test(part) for part in parts]
        return lambda value: any(test(value) for test in tests)
    if origin is Literal:
        return lambda value: isinstance(value, str | int) and value in parts
    if hint is float:
        return is_number
    if hint is int:
        return _is_whole
    if kind in (Any, object) or not isinstance(kind, type):
        return lambda value: True
    if is_dataclass(kind):
        return lambda value: isinstance(value, kind) and checked(value) is value
    inner = [_test(part) for part in parts if part is not Ellipsis]
    if issubclass(kind, Mapping):
        key, item = inner or (_test(object), _test(object))
        return lambda value: isinstance(value, kind) and all(key(k) and item(v) for k, v in value.items())
    if kind is tuple and inner and Ellipsis not in parts:
        return lambda value: isinstance(value, tuple) and len(value) == len(inner) and all(map(_call, inner, value))
    if issubclass(kind, Collection) and not issubclass(kind, str):
        item = inner[0] if inner else _test(object)
        return lambda value: (
            isinstance(value, array)
            or (isinstance(value, kind) and not isinstance(value, str) and all(map(item, value)))
        )
    if getattr(kind, "_is_protocol", False):
        return lambda value: isinstance(value, kind) and (not is_dataclass(value) or checked(value) is value)
    return lambda value: isinstance(value, kind)


def _call(test: Callable[[Any], bool], value: object) -> bool:
    return test(value)
