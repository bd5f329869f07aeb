"""Tools that a policy may call: the protocol, its optional members with their defaults, and the result of a call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from arpo.core.tree import CallStatus
from arpo.tasks import Task
from arpo.threads import settled

JsonSchema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """Where a call runs."""

    task: Task
    deadline_s: float  # seconds that this call may take
    seed: int  # derived from the call's place in the tree
    state: Any = None  # a stateful tool's, in this branch


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool returns. The model reads `text`, which the chat format cuts to its limit of tokens."""

    text: str
    status: CallStatus = CallStatus.OK
    cached: bool = False
    empty: bool = False  # nothing was found: no error, but a cache keeps it for a shorter time
    cost: float = 0.0  # money, in the unit of `tools.limits.money`
    metadata: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Tool(Protocol):
    """What a policy may call. `arpo.tools:ToolBase` says what else a tool can have."""

    name: str
    description: str
    schema: JsonSchema  # JSON schema of the arguments (an object)

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult: ...


@runtime_checkable
class StatefulTool(Tool, Protocol):
    """A tool that keeps a state in every branch. `fork` returns an independent copy; the original goes on unchanged."""

    async def open(self, task: Task) -> Any: ...
    async def fork(self, state: Any) -> Any: ...
    async def close(self, state: Any) -> None: ...


class ToolBase:
    """A tool with defaults for everything optional. The shipped tools derive from it; yours need not: whatever has the
    four members of `Tool` gets these defaults for what it lacks (`with_defaults`)."""

    name: str
    description: str
    schema: JsonSchema

    deadline_s: float | None = None  # seconds that a call may take; None: the run's `rollout.deadline_s`
    read_only: bool = False  # a call changes nothing outside of it: `arpo tools --call` may make one up
    cacheable: bool = False  # equal arguments give equal results, whatever the task and the seed
    version: str = ""  # changes when results do; "": derived from the recipe's `use` and `options`
    provider: str = ""  # the service whose rate, concurrency and failures it shares with others; "": the tool alone
    concurrency: int = 0  # calls at a time that the tool itself can bear; 0: any number
    state_of: str = ""  # the environment in whose episodes its calls work; "": none
    isolation: str = ""  # how code that the policy writes is isolated from this machine; "": the tool runs none
    offer: Mapping[str, Any] | None = None  # name, description and schema of a server's tool, kept in a record

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        raise NotImplementedError

    def complete(self, arguments: Mapping[str, Any], context: CallContext) -> Mapping[str, Any]:
        """`arguments` with what the call takes from its context. The cache keeps a result under these."""
        return arguments

    def normalise(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """`arguments` in a form in which equal calls are equal."""
        return arguments

    def ready(self) -> None:
        """Raises ConfigError where the tool cannot work, for want of a key for instance. A run asks before it starts; a
        replay does not."""


class _WithDefaults(ToolBase):
    """A tool that does not derive from ToolBase. Methods of a stateful tool are taken over too."""

    _OPTIONAL = tuple(name for name in vars(ToolBase) if not name.startswith("_"))
    _TAKEN = ("name", "description", "schema", "open", "fork", "close", *_OPTIONAL)

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        for name in self._TAKEN:
            if hasattr(tool, name):
                setattr(self, name, getattr(tool, name))

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> Any:
        return await settled(self._tool, arguments, context)


def with_defaults(tool: Tool) -> ToolBase:
    """`tool` where it derives from ToolBase, else a tool that calls it and has ToolBase's defaults for what it
    lacks."""
    return tool if isinstance(tool, ToolBase) else _WithDefaults(tool)


def isolation_of(tools: Iterable[ToolBase]) -> dict[str, str]:
    """How code that the policy writes is isolated from this machine, by the name of the tool that runs it."""
    return {tool.name: tool.isolation for tool in tools if tool.isolation}


_KINDS = {"monty": "monty, an interpreter without files and network (docs/sandbox.md)"}


def isolation_notes(tools: Iterable[ToolBase]) -> list[str]:
    """The same as lines that a run, an evaluation or a chat shows at its start."""
    return [
        f"tool {name}: the model's code runs in {_KINDS.get(kind, kind)}" for name, kind in isolation_of(tools).items()
    ]
