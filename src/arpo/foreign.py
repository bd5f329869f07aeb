"""Reads files that somebody else may have made: within limits of size, and never from a device or a pipe.

Knows files and JSON. Refuses to know what they mean. What is wrong is a FormatError that names the file.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from arpo.errors import FormatError

MOST_BYTES = 32 << 20  # of a JSON file, or of a line of one
MODEL_FILE_BYTES = 256 << 20  # of a tokenizer, or of the list of tensors in a file of weights
MOST_VALUES = 8_000_000  # in a JSON text: an empty list in it takes 2 bytes, and 56 of memory


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


def loads(text: bytes) -> Any:
    """The JSON value. Raises ValueError for what is none, is nested too deeply, or would take too much memory."""
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
