"""Tools that hold the interpreter, as a regular expression does that backtracks."""

import os
import re
import time

from arpo.tools.function import tool


def hold(seconds: float) -> int:
    """Holds the interpreter for about so long, as C code does that never lets go of it. One more character takes twice
    as long."""
    size, took = 16, 0.0
    while took < 0.05:
        size, start = size + 1, time.thread_time()
        re.match(r"(a+)+$", "a" * size + "b")
        took = time.thread_time() - start
    while took < seconds:
        size, took = size + 1, took * 2
    re.match(r"(a+)+$", "a" * size + "b")
    return size


@tool(process=True, deadline_s=1.0)
def apart(seconds: float) -> int:
    """Holds the interpreter of its own process."""
    return hold(seconds)


@tool(deadline_s=1.0)
def here(seconds: float) -> int:
    """Holds the interpreter of this process."""
    return hold(seconds)


@tool(process=True)
def which(fail: bool = False) -> int:
    """The process that runs it."""
    if fail:
        raise KeyError("x")
    return os.getpid()


@tool(process=True)
async def later(text: str) -> str:
    """An asynchronous one."""
    return text * 2


@tool(process=True)
def end() -> None:
    """Ends its process."""
    os._exit(4)
