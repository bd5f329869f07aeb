"""Runs a program like a notebook cell: it prints the value of the last expression, or an error in one line with its
line number.

Runs in a forked child, which the program may have changed in any way: the reader of the output must not trust it.
"""

import ast
import errno
import linecache
import os
import signal
import sys
import threading
from types import CodeType, TracebackType
from typing import Any

from arpo.sandbox import messages
from arpo.sandbox.limits import DESCRIPTORS, Limits

FINE, FAILED, OUT_OF_CPU, OUT_OF_OUTPUT = 0, 1, 101, 102  # how a child ends
MOST_ERROR_CHARS = 1500
MOST_SOURCE_CHARS = 80
_write = os.write


class TimeUsedUp(BaseException):
    """Raised in the program by a signal: from the kernel for processor time, from the zygote for wall time."""


def use_up(*_: object) -> None:
    raise TimeUsedUp


def listen() -> None:
    """Handle both signals."""
    signal.signal(signal.SIGXCPU, use_up)
    signal.signal(signal.SIGPROF, use_up)


def run(source: str, names: dict[str, Any], limits: Limits, *, label: str = "<program>", last: bool = True) -> int:
    """Run `source` in `names`. Its output, its last value or its error go to descriptor 1. `last` means that this
    process ends afterwards, so it waits for the program's threads. Whatever is raised here is the program's: it may
    have changed what shows its errors, too."""
    try:
        try:
            _execute(source, names, label, last)
        except TimeUsedUp:
            _flush()
            return OUT_OF_CPU
        except SystemExit as end:
            _flush()
            if end.code is None or (type(end.code) is int and end.code == 0):
                return FINE
            _say(f"SystemExit: {_text_of(end.code)}")
            return FAILED
        except BaseException as error:  # noqa: BLE001  the boundary: the program's errors are its reader's
            if _is_full(error):
                return OUT_OF_OUTPUT
            _flush()
            _say(_told(error, label, source, limits))
            return FAILED
    except TimeUsedUp:  # while an error was told
        return OUT_OF_CPU
    except BaseException:  # noqa: BLE001  its own words, hooks and replacements of what is used here
        _write(1, b"the program's error cannot be shown\n")
        return FAILED
    return FINE


def _execute(source: str, names: dict[str, Any], label: str, last: bool) -> None:
    body, expression = _compiled(source, label)
    exec(body, names)
    value = eval(expression, names) if expression is not None else None
    if value is not None:
        names["_"] = value
        print(repr(value))
    if last and threading.active_count() > 1:
        threading._shutdown()  # type: ignore[attr-defined]
    sys.stdout.flush()


def _compiled(source: str, label: str) -> tuple[CodeType, CodeType | None]:
    tree = ast.parse(source, label)
    linecache.cache[label] = (len(source), None, source.splitlines(keepends=True), label)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return compile(tree, label, "exec"), None
    tree.body.pop()
    return compile(tree, label, "exec"), compile(ast.Expression(last.value), label, "eval")


def _is_full(error: BaseException) -> bool:
    """True if a write failed because the output is full."""
    if not isinstance(error, OSError) or error.errno != errno.EPERM:
        return False
    try:
        return os.lseek(1, 0, os.SEEK_CUR) >= os.fstat(1).st_size
    except OSError:
        return False


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except TimeUsedUp:
            raise
        except BaseException:  # noqa: BLE001  whatever the program put in their place
            continue


def _say(text: str) -> None:
    """Write a line that bypasses the program's sys.stdout."""
    try:
        _write(1, (text[:MOST_ERROR_CHARS] + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        return


def _told(error: BaseException, label: str, source: str, limits: Limits) -> str:
    """`ZeroDivisionError: division by zero (line 2: x / 0)`."""
    kind = type.__dict__["__name__"].__get__(type(error))  # not what its metaclass says
    if isinstance(error, SyntaxError) and error.filename == label:
        text = (error.text or "").strip()
        return f"{kind}: {error.msg} (line {error.lineno}{': ' + text[:MOST_SOURCE_CHARS] if text else ''})"
    message = _limit_behind(error, limits)
    if not message:
        words = _text_of(error)
        message = f"{kind}: {words}" if words else kind
    return f"{message[: MOST_ERROR_CHARS - 300]}{_place(error.__traceback__, label, source)}"


def _text_of(value: object) -> str:
    try:
        return str(value)
    except TimeUsedUp:
        raise
    except BaseException as worse:  # noqa: BLE001  its own __str__
        return f"<no message: {type.__dict__['__name__'].__get__(type(worse))}>"


def _limit_behind(error: BaseException, limits: Limits) -> str:
    """The message for an error that a limit caused, or ""."""
    if isinstance(error, MemoryError):
        return messages.out_of_memory(limits.memory_mb)
    if not isinstance(error, OSError):
        return ""
    if error.errno == errno.ENOMEM:
        return messages.out_of_memory(limits.memory_mb)
    if error.errno in (errno.EFBIG, errno.ENOSPC):
        return messages.file_too_large(limits.file_mb)
    if error.errno == errno.EMFILE:
        return messages.too_many_descriptors(DESCRIPTORS)
    if error.errno == errno.EAGAIN and isinstance(error, BlockingIOError) and error.filename is None:
        return messages.no_more_processes(limits.processes)
    return ""


def _place(trace: TracebackType | None, label: str, source: str) -> str:
    """The place in the program: its innermost line, and the line that led there, if it is another one."""
    inner: list[tuple[int, str]] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == label:
            inner.append((trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    if not inner:
        return ""
    number, function = inner[-1]
    lines = source.splitlines()
    text = lines[number - 1].strip()[:MOST_SOURCE_CHARS] if 0 < number <= len(lines) else ""
    within = "" if function.startswith("<") else f" in {function}"
    called = f"; called from line {inner[0][0]}" if inner[0][0] != number else ""
    return f" (line {number}{within}{': ' + text if text else ''}{called})"
