"""Simple Python in pydantic-monty: an interpreter without files, network and packages, on every platform.

Knows its limits and how to show a program's output. Every call starts with a fresh interpreter. Nothing that a program
does takes this process's time or memory: it prints its last value itself (a value of shared lists grows without bound
when it is copied to this process), and it never waits here (`time.sleep` returns at once).
"""

import ast
import contextlib
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.sandbox.places import Places
from arpo.threads import run_off_loop
from arpo.tools import ToolResult

GRACE_S = 0.5  # for the interpreter to notice its limit; then its process is killed and replaced
KEEP = "__print, __repr, __isinstance, __str = print, repr, isinstance, str"  # programs name variables like that
SHOW = "\nif _ is not None: __print(_ if __isinstance(_, __str) else __repr(_))"


class Monty:
    """Raises ConfigError where pydantic-monty is not installed, or does not start."""

    isolation = "monty"

    def __init__(
        self, *, seconds: float = 5.0, memory_mb: int = 128, output_chars: int = 20_000, at_once: int = 2
    ) -> None:
        try:
            import pydantic_monty
        except ImportError as error:
            raise ConfigError(
                "the python tool needs pydantic-monty", where="tools", hint="pip install pydantic-monty==1.4.0"
            ) from error
        self._monty = pydantic_monty
        self.seconds, self.memory_mb, self.output_chars = seconds, memory_mb, output_chars
        self._pool = pydantic_monty.Monty(max_processes=at_once, feed_duration_limit_grace=GRACE_S)
        try:
            self._pool.__enter__()
        except (OSError, RuntimeError, pydantic_monty.MontyError) as error:
            raise ConfigError(f"the python sandbox does not start: {error}", where="tools", value="python") from error
        self._places = Places(at_once)
        self._running: set[int] = set()  # processes in the middle of a call
        self.close = weakref.finalize(self, _close, self._pool, self._running)

    async def run(self, code: str, *, seconds: float, seed: int) -> ToolResult:
        """What `code` came to. `seed` is of no use here: this Python draws no random numbers. The limit begins when an
        interpreter is free: programs that run into theirs take none of the time of others."""
        async with self._places.one():
            return await run_off_loop(self._run, code, min(self.seconds, seconds))

    def _run(self, code: str, seconds: float) -> ToolResult:
        monty = self._monty
        printed = monty.CollectString(max_bytes=self.output_chars * 4)
        limits: Any = {"max_feed_duration_secs": seconds * 0.9, "max_memory": self.memory_mb * 2**20}
        late = f"TimeoutError: stopped after {seconds:g} s"
        try:
            with (
                self._pool.checkout(limits=limits, os_policy={"sleep": "zero"}) as session,
                self._computing(session.worker_pid, seconds),
            ):
                session.feed_run(KEEP)
                session.feed_run(_printing_its_value(code), print_callback=printed)
        except (monty.MontyRuntimeError, monty.MontySyntaxError) as error:
            if "time limit exceeded" in error.display("msg"):  # that message holds measured times
                return self._shown(printed.output, late, CallStatus.TIMEOUT)
            return self._shown(printed.output, _error_line(error, code), CallStatus.ERROR)
        except monty.MontyCrashedError as error:
            if error.timed_out or "SIGXCPU" in str(error):
                return self._shown(printed.output, late, CallStatus.TIMEOUT)
            return self._shown(printed.output, "the program was stopped", CallStatus.ERROR)
        except monty.MontyError as error:
            return self._shown(printed.output, str(error), CallStatus.ERROR)
        return self._shown(printed.output, "", CallStatus.OK)

    @contextlib.contextmanager
    def _computing(self, pid: int | None, seconds: float) -> Iterator[None]:
        """The interpreter `pid` is at work."""
        if pid is None:
            yield
            return
        _limit_processor_time(pid, seconds)
        self._running.add(pid)
        try:
            yield
        finally:
            self._running.discard(pid)

    def _shown(self, printed: str, last: str, status: CallStatus) -> ToolResult:
        text = "\n".join(part for part in (printed.rstrip("\n"), last) if part) or "(no output)"
        if len(text) > self.output_chars:
            text = text[: self.output_chars] + "…[cut]"
        return ToolResult(text=text, status=status)


def _close(pool: Any, running: set[int]) -> None:
    """End the interpreters, also those that compute: the pool leaves these to their limits."""
    for pid in [*running]:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    pool.__exit__(None, None, None)


def _limit_processor_time(pid: int, seconds: float) -> None:
    """The kernel ends the interpreter `pid` after so much more of it: also where this process, which kills it at its
    deadline, has been killed itself. (Some operations, like `==` of nested lists, do not notice the interpreter's own
    limit.)"""
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError):  # it has ended, which the call says
            soft = int(time.clock_gettime((~pid << 3) | 2) + seconds) + 2  # later than that deadline
            hard = resource.prlimit(pid, resource.RLIMIT_CPU)[1]
            resource.prlimit(pid, resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def _printing_its_value(code: str) -> str:
    """`code`, which prints the value of its last expression and returns None. Lines keep their numbers."""
    try:
        tree = compile(code, "main.py", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):  # then monty says what is wrong
        return code + "\nNone"
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return code + "\nNone"
    lines = code.encode().splitlines(keepends=True)
    last_line = lines[last.lineno - 1]
    before = b"".join(lines[: last.lineno - 1]) + last_line[: last.col_offset]
    expression = ast.get_source_segment(code, last) or "None"
    return f"{before.decode()}_ = ({expression})" + SHOW + "\nNone"


def _error_line(error: Any, code: str) -> str:
    """`ZeroDivisionError: division by zero (line 2: x / 0)`: what a model needs, in a few tokens."""
    lines = code.replace("\r\n", "\n").split("\n")
    frames = [frame.line for frame in error.traceback() if frame.line <= len(lines)]
    where = ""
    if frames:
        source = lines[frames[-1] - 1].strip()
        where = f" (line {frames[-1]}{': ' + source[:80] if source else ''})"
    return f"{error.display('type-msg')}{where}"
