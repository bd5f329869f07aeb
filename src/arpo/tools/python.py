"""The `python` tool: runs code that a model wrote, and shows what it printed and the value of its last expression.

Knows code blocks and the tool's settings. What runs the code is a backend: `monty` (simple Python, anywhere), `sandbox`
(CPython with the packages that the recipe lists, Linux), or one of your own (a container, a service).
"""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, nearest
from arpo.import_path import import_from_path
from arpo.tasks import Task
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult

FENCE = re.compile(r"^\s*```(?:python|py)?[ \t]*\n(.*?)(?:\n```\s*)?$", re.DOTALL)
MOST_CODE_CHARS = 100_000  # parsed here: 8 MB took 20 s and 4 GB
OF_MONTY = ("seconds", "memory_mb", "output_chars", "at_once")
LIMITS = ("seconds", "cpu_seconds", "memory_mb", "processes", "file_mb", "output_bytes")
OF_SANDBOX = (*LIMITS, "imports", "at_once", "level", "allow_weak_isolation", "session", "live_sessions")


@runtime_checkable
class Backend(Protocol):
    """Runs programs. A sandbox of your own is an object with these two members, or a function (`pkg.mod:function`) that
    makes one from those of the tool's options that the recipe gives. It has no sessions."""

    isolation: str  # in a few words: shown when a run starts, and recorded

    async def run(self, code: str, *, seconds: float, seed: int) -> ToolResult: ...


@runtime_checkable
class ClosableBackend(Backend, Protocol):
    """A backend that holds processes or connections until it is closed."""

    def close(self) -> None: ...


class PythonTool(ToolBase):
    """Runs code in `backend`; options that are left out are the backend's own.

    For both: `seconds` of wall time a call, `memory_mb`, `at_once` (calls that run at a time). monty: `output_chars`.
    sandbox: `cpu_seconds`, `processes` that a program may start, `file_mb`, `output_bytes`, `imports` (what is there
    without waiting), `level` and `allow_weak_isolation` (see docs/sandbox.md), and `session`: variables live through a
    trajectory, and branches share those of their trunk (`live_sessions` processes at most hold them).

    Errors come back as one readable line with the line of code (CallStatus.ERROR), a limit of time as
    CallStatus.TIMEOUT. Raises ConfigError where a backend is not installed, or the isolation that is asked for cannot
    be had here.
    """

    read_only = True  # of this machine

    def __new__(cls, **options: Any) -> "PythonTool":
        return object.__new__(SessionPythonTool if options.get("session") and cls is PythonTool else cls)

    def __init__(
        self,
        *,
        name: str = "python",
        description: str = "Runs code.",
        backend: "str | Backend" = "monty",
        seconds: float | None = None,
        cpu_seconds: float | None = None,
        memory_mb: int | None = None,
        processes: int | None = None,
        file_mb: int | None = None,
        output_bytes: int | None = None,
        output_chars: int | None = None,
        imports: Sequence[str] | None = None,
        at_once: int | None = None,
        session: bool | None = None,
        live_sessions: int | None = None,
        level: str | None = None,
        allow_weak_isolation: bool | None = None,
    ) -> None:
        settings = {
            key: value
            for key, value in locals().items()
            if key not in ("self", "name", "description", "backend", "__class__")
        }
        options = {key: value for key, value in settings.items() if value is not None}
        self.name, self.description = name, description
        self.schema: JsonSchema = {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "Python; the value of the last expression is shown."}
            },
            "required": ["code"],
        }
        self._backend = _built(backend, options)
        self.isolation = self._backend.isolation

    def shut(self) -> None:
        """End what the backend holds; it ends with the process anyway."""
        if isinstance(self._backend, ClosableBackend):
            self._backend.close()

    close: Any = shut

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        code = arguments.get("code")
        if not isinstance(code, str):
            return ToolResult(text=f"{self.name} needs 'code', a text", status=CallStatus.REFUSED)
        if len(code) > MOST_CODE_CHARS:
            wrong = f"the program has more than {MOST_CODE_CHARS:,} characters"
            return ToolResult(text=wrong, status=CallStatus.REFUSED)
        return await self._run(_unfenced(code), context)

    async def _run(self, code: str, context: CallContext) -> ToolResult:
        return await self._backend.run(code, seconds=context.deadline_s, seed=context.seed)


class SessionPythonTool(PythonTool):
    """`PythonTool(session=True)`: a StatefulTool. Its state is of `arpo.tools.sandboxed`."""

    async def open(self, task: Task) -> Any:
        from arpo.tools.sandboxed import PythonState

        return PythonState()

    async def fork(self, state: Any) -> Any:
        return await self._sandboxed.fork(state)

    async def close(self, state: Any) -> None:
        self._sandboxed.end(state)

    async def _run(self, code: str, context: CallContext) -> ToolResult:
        state = context.state
        if state is None:  # asked outside a trajectory: a session of one call
            return await super()._run(code, context)
        return await self._sandboxed.run_in(state, code, seconds=context.deadline_s, seed=context.seed)

    @property
    def _sandboxed(self) -> Any:
        return self._backend


def _built(backend: "str | Backend", options: dict[str, Any]) -> Backend:
    if not isinstance(backend, str):
        return _foreign(backend, options)
    if backend == "monty":
        _check(options, OF_MONTY, backend)
        from arpo.tools.monty import Monty

        return Monty(**options)
    if backend == "sandbox":
        _check(options, OF_SANDBOX, backend)
        return _sandboxed(**options)
    if ":" in backend:
        return _made(import_from_path(backend, "backend"), backend, options)
    raise ConfigError("no such backend", where="backend", value=backend, hint=nearest(backend, ("monty", "sandbox")))


def _sandboxed(
    *, imports: Sequence[str] = (), session: bool = False, live_sessions: int = 48, processes: int = 0, **options: Any
) -> Backend:
    from arpo.sandbox.limits import Limits
    from arpo.tools.sandboxed import Sandboxed

    if isinstance(imports, str) or not all(isinstance(name, str) for name in imports):
        raise ConfigError("a list of modules", where="imports", value=imports, hint="[math, sympy, numpy]")
    if session and processes:
        raise ConfigError(
            "a session cannot start processes: its state could not be forked", where="processes", value=processes
        )
    limits = {
        key: options.pop(key)
        for key in ("seconds", "cpu_seconds", "memory_mb", "file_mb", "output_bytes")
        if key in options
    }
    for key, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError("must be a number above 0", where=key, value=value)
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 0:
        raise ConfigError("must be 0 or more", where="processes", value=processes)
    return Sandboxed(
        limits=Limits(processes=processes, **limits),
        imports=imports,
        live_sessions=live_sessions if session else 0,
        **options,
    )


def _made(make: Any, name: str, options: dict[str, Any]) -> Backend:
    """What a user's factory makes of the options. Raises ConfigError for those that it does not take."""
    if options.pop("session", False):
        hint = "A tool of your own with open, fork and close has states (docs/tools.md); so has backend: sandbox"
        raise ConfigError("a backend of your own holds no sessions", where="session", value=True, hint=hint)
    if not callable(make):
        return _foreign(make, options)
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        wrong = f"{name} cannot be called with these options: {error}"
        raise ConfigError(
            wrong, where="backend", value=name, hint=f"It is given {', '.join(options) or 'nothing'}"
        ) from error
    return _foreign(make(**options), {})


def _foreign(backend: Any, options: Mapping[str, Any]) -> Backend:
    if options:
        raise ConfigError(
            "a backend of your own has its own settings", where=next(iter(options)), value=next(iter(options.values()))
        )
    if not isinstance(backend, Backend) or not callable(backend.run) or not isinstance(backend.isolation, str):
        raise ConfigError("no backend: it needs `isolation` and `run`", where="backend", value=backend)
    return backend


def _check(options: Mapping[str, Any], known: Sequence[str], backend: str) -> None:
    for key, value in options.items():
        if key not in known and value is not False:
            other = "sandbox" if backend == "monty" else "monty"
            raise ConfigError(
                f"not of backend {backend}", where=key, value=value, hint=f"It is an option of backend: {other}"
            )


def _unfenced(code: str) -> str:
    """The program in a Markdown fence, or all of it, with common indentation removed."""
    fenced = FENCE.match(code)
    return textwrap.dedent(fenced.group(1) if fenced else code).strip("\n")
