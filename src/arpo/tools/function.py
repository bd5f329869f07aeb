"""A typed function with a docstring as a tool: the schema comes from its types, the descriptions from its docstring.

@tool
def population(country: str, year: int = 2020) -> int:
    '''Population of a country.

    Args:
        country: English name.
    '''
"""

import copy
import inspect
import json
import re
import sys
import typing
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ToolError
from arpo.files import as_seen_from_here
from arpo.threads import is_asynchronous, run_off_loop
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult
from arpo.tools.own_thread import OwnThread
from arpo.tools.tool_event_loop import ToolEventLoop
from arpo.worker_process import WorkerError, WorkerPool

MOST_ABANDONED = 64  # threads of synchronous calls that never came back, before the tool counts as broken


class FunctionTool(ToolBase):
    """A function as a tool. Synchronous functions run in a thread of their own, asynchronous ones on an event loop of
    their own: one that blocks holds up no other tool and no engine.

    Arguments that do not fit the types give CallStatus.REFUSED with a text that the model can read. A parameter
    annotated `CallContext` (or named `context` without a type) is filled in and hidden from the schema. A method is a
    tool of its class (see `tools_of`) and can be called once it is `bound_to` an object; to the class's own code it is
    the method that it was (`self.look(3)`). Raises ConfigError for a function that cannot be a tool: no docstring, a
    parameter without a type, `*args` or `**kwargs`, a generator.
    """

    concurrency = 0  # calls at a time, as the tool itself can bear them; 0: any number

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str = "",
        description: str = "",
        deadline_s: float | None = None,
        cacheable: bool = False,
        version: str = "",
        provider: str = "",
        process: bool = False,
    ) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", "")
        self.deadline_s = deadline_s
        self.cacheable, self.version, self.provider = cacheable, version, provider
        about, arguments = read_docstring(function)
        self.description = description or about
        if not self.description:
            raise self._unfit("has no docstring to tell the model what it does")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise self._unfit("yields, and a tool returns its result whole")
        self._model = self._arguments_model(arguments)
        self.schema: JsonSchema = _tidy(self._model.model_json_schema(by_alias=True))
        self.is_async = is_asynchronous(function)
        self._own_loop = ToolEventLoop(self.name)
        self._own_thread: OwnThread | None = None
        self._processes = WorkerPool(self._target()) if process else None
        self.concurrency = self._processes.most if self._processes else 0
        self._running: set[object] = set()  # calls whose threads have not ended
        self._awaited: set[object] = set()  # calls that somebody still waits for

    def _arguments_model(self, descriptions: Mapping[str, str]) -> type[BaseModel]:
        target = self.function if inspect.isroutine(self.function) else type(self.function).__call__
        try:
            hints = typing.get_type_hints(target, include_extras=True)
        except (NameError, TypeError) as error:
            raise self._unfit(f"has a type that cannot be resolved: {error}") from error
        self._context_name = ""
        parameters = dict(inspect.signature(self.function).parameters)
        self.is_method = (
            inspect.isfunction(self.function) and next(iter(parameters), "") == "self" and "self" not in hints
        )
        if self.is_method:
            del parameters["self"]
        fields: dict[str, Any] = {}
        for number, (name, parameter) in enumerate(parameters.items()):
            if hints.get(name) is CallContext or (name == "context" and name not in hints):
                self._context_name = name
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise self._unfit(f"has a parameter that cannot be passed by name: {parameter}")
            if name not in hints:
                raise self._unfit(f"has a parameter without a type: {name}")
            default = ... if parameter.default is parameter.empty else parameter.default
            # aliases keep names like `schema` or `_x` apart from what pydantic's models define themselves
            fields[f"argument_{number}"] = (hints[name], Field(default, alias=name, description=descriptions.get(name)))
        try:
            return create_model(
                "Arguments", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
            )
        except PydanticUserError as error:
            raise self._unfit(f"has a type that no JSON schema describes: {error.message}") from error

    def _target(self) -> str:
        """Where a process finds the function. Raises ConfigError where it cannot."""
        module, path = self.function.__module__, self.function.__qualname__
        file = getattr(sys.modules.get(module), "__file__", None)
        if self.is_method or "<" in path or file is None:
            raise self._unfit("runs in a process of its own, so it must be a function of a module, not a method")
        return f"{module}:{path}"

    def ready(self) -> None:
        """Starts the first process, where the function runs in its own."""
        if self._processes is not None:
            try:
                self._processes.start()
            except WorkerError as error:
                raise self._unfit(f"cannot run in a process of its own: {error}") from error

    def _unfit(self, why: str) -> ConfigError:
        return ConfigError(f"the function {why}", where=_place(self.function), value=self.name or self.function)

    def bound_to(
        self, made: object, *, owner: str, thread: OwnThread | None = None, loop: ToolEventLoop | None = None
    ) -> "FunctionTool":
        """This method of the object `made`, to be called in `thread` or on `loop`. `owner` names what the object's
        tools share."""
        bound = copy.copy(self)
        bound.function, bound.is_method = self.function.__get__(made), False  # type: ignore[attr-defined]
        bound.provider = self.provider or owner
        bound._own_thread, bound._own_loop = thread, loop or ToolEventLoop(self.name)
        bound.concurrency = 1 if thread else 0
        bound._running, bound._awaited = set(), set()
        return bound

    def __get__(self, made: object | None, owner: type | None = None) -> Any:
        return self if made is None or not self.is_method else self.function.__get__(made)  # type: ignore[attr-defined]

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        try:
            checked = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            return ToolResult(text=_explain(self.name, error, self.schema), status=CallStatus.REFUSED)
        names = {str(field.alias): key for key, field in self._model.model_fields.items()}
        values = {name: getattr(checked, key) for name, key in names.items()}
        if self._context_name:
            values[self._context_name] = context
        if self._processes is not None:
            return as_result(await self._processes.run(values, context.deadline_s + 1.0))
        if self.is_async:
            return as_result(await self._own_loop.run(lambda: self.function(**values)))
        if self._own_thread is not None:
            return as_result(await self._settled(await self._own_thread.run(lambda: self.function(**values))))
        return as_result(await self._settled(await self._off_loop(values)))

    async def _off_loop(self, values: Mapping[str, Any]) -> Any:
        abandoned = len(self._running) - len(self._awaited)
        if abandoned >= MOST_ABANDONED:
            raise ToolError(f"{abandoned} earlier calls of {self.name} never came back")
        call = object()

        def work() -> Any:
            try:
                return self.function(**values)
            finally:
                self._running.discard(call)

        self._running.add(call)
        self._awaited.add(call)
        try:
            return await run_off_loop(work)
        finally:
            self._awaited.discard(call)

    async def _settled(self, result: Any) -> Any:
        return await self._own_loop.run(lambda: _awaited(result)) if inspect.isawaitable(result) else result


def _place(function: Callable[..., Any]) -> str:
    """File and line of a function; "tools" where it has none."""
    try:
        target = inspect.unwrap(function if inspect.isroutine(function) else type(function))
        file, (_, line) = inspect.getsourcefile(target), inspect.getsourcelines(target)
    except (OSError, TypeError):  # made at a prompt, or written in C
        return "tools"
    return f"{as_seen_from_here(Path(file))}, line {line}" if file else "tools"


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def as_result(value: object) -> ToolResult:
    """What a function returned, as a tool's result: text as it is, None as no text, bytes as UTF-8, else JSON where it
    can be."""
    if isinstance(value, ToolResult):
        return value
    if value is None or isinstance(value, str):
        return ToolResult(text=value or "")
    if isinstance(value, bytes | bytearray):
        return ToolResult(text=value.decode("utf-8", "replace"))
    try:
        return ToolResult(text=json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return ToolResult(text=str(value))


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    deadline_s: float | None = None,
    cacheable: bool = False,
    version: str = "",
    provider: str = "",
    process: bool = False,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Turn a typed function with a docstring into a tool: `@tool` or `@tool(name=..., deadline_s=...)`. See
    FunctionTool.

    `cacheable`: equal arguments give equal results, so that they may be kept; `version`: a text that changes when
    results do; `provider`: whose limits and failures it shares with other tools; `process`: it runs in a process of its
    own, for what holds the interpreter (a regular expression, a loop in C): a late call is killed there, and holds up
    nothing here. Such a function stands in a module, and arguments and results are pickled.
    """
    return FunctionTool(function, **options) if function is not None else lambda f: FunctionTool(f, **options)


def _explain(name: str, error: ValidationError, schema: JsonSchema) -> str:
    faults = "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors(include_url=False)[:5]
    )
    wanted = ", ".join(f"{key}: {value.get('type', 'any')}" for key, value in schema.get("properties", {}).items())
    return f"{name}({wanted}) cannot take these arguments: {faults}"


def _tidy(schema: Any) -> Any:
    """A schema without the titles that pydantic adds: they cost prompt tokens and say nothing."""
    if isinstance(schema, Mapping):
        drop = "title" if isinstance(schema.get("title"), str) else None
        return {key: _tidy(value) for key, value in schema.items() if key != drop}
    return [_tidy(item) for item in schema] if isinstance(schema, list) else schema


def has_tool_methods(candidate: Any) -> bool:
    """True for a class with at least one method that is decorated by `@arpo.tool`."""
    return inspect.isclass(candidate) and bool(tool_methods(candidate))


def tools_of(made_from: type, options: Mapping[str, Any]) -> list[FunctionTool]:
    """The tools of a class whose methods are tools, over one `made_from(**options)` that all branches of a run share,
    in the order in which the class defines them. Raises ConfigError for a class with methods of both kinds, and what
    the class itself raises.

    Plain methods run in the object's own thread, in which it is made too: a connection of sqlite3 works, and nothing
    needs a lock. `async def` methods share one event loop. A class has one kind of them, since two threads would meet
    in the object.
    """
    methods, name = tool_methods(made_from), made_from.__name__
    if len({method.is_async for method in methods}) > 1:
        raise ConfigError(
            "some of its tools are `async def` and some are not, so two threads would share the object",
            where="tools",
            value=name,
            hint="Make them all one kind",
        )
    if methods[0].is_async:
        made, loop = made_from(**options), ToolEventLoop(name)
        return [method.bound_to(made, owner=name, loop=loop) for method in methods]
    thread = OwnThread(name)
    made = thread.make(lambda: made_from(**options))
    return [method.bound_to(made, owner=name, thread=thread) for method in methods]


def tool_methods(owner: type) -> list[FunctionTool]:
    named: dict[str, Any] = {}
    for each in reversed(owner.__mro__):
        named.update(vars(each))
    return [value for value in named.values() if isinstance(value, FunctionTool) and value.is_method]


# --- docstrings

SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?)\s*:\s*$")
GOOGLE = re.compile(r"^(\s+)\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
SPHINX = re.compile(r"^:param\s+(?:[\w\[\], |]+\s+)?(\w+)\s*:\s*(.*)$")


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description (paragraphs before the first section, as one text) and the description of each argument by
    name."""
    lines = (inspect.getdoc(function) or "").splitlines()
    about: list[str] = []
    arguments: dict[str, str] = {}
    section, current, indent = "", "", 0
    for line in lines:
        if found := SECTION.match(line):
            section, current, indent = found.group(1), "", 0
        elif found := SPHINX.match(line.strip()):
            section, current = "param", found.group(1)
            arguments[current] = found.group(2)
        elif line.strip().startswith(":return") or line.strip().startswith(":raise"):
            section = "other"
        elif section in ("Args", "Arguments", "Parameters"):
            found = GOOGLE.match(line)
            indent = indent or (len(found.group(1)) if found else 0)
            if found and len(found.group(1)) == indent:
                current = found.group(2)
                arguments[current] = found.group(3)
            elif current and line.strip():
                arguments[current] += f" {line.strip()}"
        elif section == "param" and line.strip():
            arguments[current] += f" {line.strip()}"
        elif not section:
            about.append(line)
    return " ".join(" ".join(about).split()), {name: text.strip() for name, text in arguments.items()}
