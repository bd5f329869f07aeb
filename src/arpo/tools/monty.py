"""Simple Python in pydantic-monty: an interpreter without files, network and packages, on every platform.

Knows its limits and how to show what a program came to. Every call starts with a fresh interpreter.
"""

import weakref
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.threads import run_off_loop
from arpo.tools import ToolResult


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
        self._pool = pydantic_monty.Monty(max_processes=at_once)
        try:
            self._pool.__enter__()
        except (OSError, RuntimeError, pydantic_monty.MontyError) as error:
            raise ConfigError(f"the python sandbox does not start: {error}", where="tools", value="python") from error
        self.close = weakref.finalize(self, self._pool.__exit__, None, None, None)

    async def run(self, code: str, *, seconds: float, seed: int) -> ToolResult:
        """What `code` came to. `seed` is of no use here: this Python draws no random numbers."""
        return await run_off_loop(self._run, code, min(self.seconds, seconds))

    def _run(self, code: str, seconds: float) -> ToolResult:
        monty = self._monty
        printed = monty.CollectString(max_bytes=self.output_chars * 4)
        limits: Any = {"max_feed_duration_secs": seconds * 0.9, "max_memory": self.memory_mb * 2**20}
        try:
            with self._pool.checkout(limits=limits, print_flush_interval=None) as session:
                value = session.feed_run(code, print_callback=printed)
        except (monty.MontyRuntimeError, monty.MontySyntaxError) as error:
            late = "time limit exceeded" in error.display("msg")
            if late:  # the sandbox's own message holds measured times; the same call must give the same text
                return self._shown(printed.output, f"TimeoutError: stopped after {seconds:g} s", CallStatus.TIMEOUT)
            return self._shown(printed.output, _error_line(error), CallStatus.ERROR)
        except monty.MontyCrashedError as error:
            return self._shown(
                printed.output, "the program was stopped", CallStatus.TIMEOUT if error.timed_out else CallStatus.ERROR
            )
        except monty.MontyError as error:
            return self._shown(printed.output, str(error), CallStatus.ERROR)
        except ValueError as error:  # a value that Python itself refuses to print, such as a number of a million digits
            return self._shown(printed.output, f"ValueError: {error}", CallStatus.ERROR)
        try:
            shown = "" if value is None else value if isinstance(value, str) else repr(value)
        except ValueError as error:
            return self._shown(printed.output, f"ValueError: {error}", CallStatus.ERROR)
        return self._shown(printed.output, shown, CallStatus.OK)

    def _shown(self, printed: str, last: str, status: CallStatus) -> ToolResult:
        text = "\n".join(part for part in (printed.rstrip("\n"), last) if part) or "(no output)"
        if len(text) > self.output_chars:
            text = text[: self.output_chars] + "…[cut]"
        return ToolResult(text=text, status=status)


def _error_line(error: Any) -> str:
    """`ZeroDivisionError: division by zero (line 2: x / 0)`: what a model needs, in a few tokens."""
    frames = error.traceback()
    where = ""
    if frames:
        source = (frames[-1].source_line or "").strip()
        where = f" (line {frames[-1].line}{': ' + source[:80] if source else ''})"
    return f"{error.display('type-msg')}{where}"
