"""CPython in arpo's own sandbox (`arpo.sandbox`): results as a tool gives them, and sessions.

A session is its calls: the process that holds its variables can be forked, can be let go when there are too many, and
can die; then the calls are made again, with the same seeds, when the session is next used.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.sandbox import levels, messages
from arpo.sandbox.limits import Limits
from arpo.sandbox.verdict import Ran
from arpo.sandbox.warm import Died, StartError, WarmSandbox
from arpo.sandbox.weak import WeakSandbox
from arpo.tools import ToolResult

STATUS = {"ok": CallStatus.OK, "error": CallStatus.ERROR, "time": CallStatus.TIMEOUT, "cpu": CallStatus.TIMEOUT}
ATTEMPTS = 3  # at finding a session's process alive
AS_BEFORE = "(variables are as they were before this call)"
_names = itertools.count()


@dataclass(eq=False, slots=True)
class PythonState:
    """A session: the calls that made it, as (code, seed), and the name of the process that has its variables, if one
    has."""

    past: list[tuple[str, int]] = field(default_factory=list)
    live: str = ""


class Sandboxed:
    """Runs programs at the strongest level that this machine allows, or not at all. Raises ConfigError.

    `level`: "auto", or the least that will do (see `arpo.sandbox.levels`); "weak" only with `allow_weak_isolation`.
    `live_sessions`: processes that may hold variables at a time; 0: no sessions.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        imports: Sequence[str] = (),
        level: str = "auto",
        allow_weak_isolation: bool = False,
        at_once: int = 16,
        live_sessions: int = 0,
    ) -> None:
        self._sandbox: WarmSandbox | WeakSandbox
        if level == "weak":
            if not allow_weak_isolation:
                hint = (
                    "allow_weak_isolation: true says that model-written code "
                    "may reach the files and network of this user"
                )
                raise ConfigError("this level protects nothing", where="level", value=level, hint=hint)
            if live_sessions:
                raise ConfigError(
                    "needs a real sandbox: nothing at level weak holds variables", where="session", value=True
                )
            self._sandbox = WeakSandbox(limits, imports, at_once=min(at_once, os.cpu_count() or 1))
            self.isolation = "weak: a subprocess with limits, not isolated"
        else:
            self._sandbox = levels.start(level, limits=limits, imports=imports, at_once=at_once, sessions=live_sessions)
            self.isolation = levels.words(self._sandbox)

    def close(self) -> None:
        self._sandbox.close()

    async def run(self, code: str, *, seconds: float, seed: int) -> ToolResult:
        """What `code` came to, in an interpreter that nothing else has used. CallStatus.UNAVAILABLE where the sandbox
        died of it."""
        try:
            return _result(await self._sandbox.run(code, seconds=seconds, seed=seed))
        except (Died, StartError) as error:
            return _lost(error)

    async def run_in(self, state: PythonState, code: str, *, seconds: float, seed: int) -> ToolResult:
        """What `code` came to in a session, which keeps what it left behind. A call that has to be killed takes the
        process along: the session then is as before it."""
        try:
            for _ in range(ATTEMPTS):
                past = None if state.live else state.past
                state.live = state.live or f"s{next(_names)}"
                ran = await self._warm.run(code, seconds=seconds, seed=seed % 2**63, session=state.live, past=past)
                if ran.gone:
                    state.live = ""
                if ran.ending and ran.text != messages.NOT_AGAIN:
                    break
            else:
                if not ran.ending:
                    return _lost(Died())
        except (Died, StartError) as error:
            state.live = ""
            return _lost(error)
        if not ran.gone:
            state.past.append((code, seed % 2**63))
            return _result(ran)
        if ran.text == messages.NOT_AGAIN:  # its programs' doing, so it is no failure of the sandbox
            state.past.clear()
        kept = f"\n{AS_BEFORE}" if state.past else ""
        return _result(Ran(text=(ran.text or messages.LEFT) + kept, ending=ran.ending))

    async def fork(self, state: PythonState) -> PythonState:
        """An independent session that goes on from the same variables: a forked process, or none yet, where that cannot
        be."""
        copy = PythonState(list(state.past))
        if state.live:
            name = f"s{next(_names)}"
            if await self._warm.fork(state.live, name):
                copy.live = name
        return copy

    def end(self, state: PythonState) -> None:
        """Closing twice is fine."""
        if state.live:
            self._warm.end_session(state.live)
            state.live = ""

    @property
    def _warm(self) -> WarmSandbox:
        assert isinstance(self._sandbox, WarmSandbox)
        return self._sandbox


def _result(ran: Ran) -> ToolResult:
    return ToolResult(text=ran.text or messages.NOTHING, status=STATUS.get(ran.ending, CallStatus.ERROR))


def _lost(error: Exception) -> ToolResult:
    return ToolResult(text=str(error) or messages.LOST, status=CallStatus.UNAVAILABLE)
