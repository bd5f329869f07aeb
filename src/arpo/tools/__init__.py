"""The seam to the world: tools that a policy may call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from arpo.core.tree import CallStatus
from arpo.tasks import Task

JsonSchema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What a call may know of where it runs."""

    task: Task
    deadline_s: float  # seconds that this call may take
    seed: int  # keyed by the call's place in the tree
    state: Any = None  # of a stateful tool, for this branch


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool returns. `text` goes to the model (cut to the token limit by the chat format)."""

    text: str
    status: CallStatus = CallStatus.OK
    cached: bool = False
    empty: bool = False  # nothing was found: no error, and kept for a shorter time by a cache
    cost: float = 0.0  # money that this call cost, in the unit of `tools.limits.budget.money`
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Tool(Protocol):
    """What a policy may call.

    Optional attributes, read where they are there: `deadline_s` (seconds a call may take); `cacheable` (True: equal arguments
    give equal results, whatever the task and the seed, so that a result may be kept and shared; False without it); `version`
    (a text that changes when results do; "" without it); `provider` (whose rate, concurrency and failures this tool shares
    with others; the tool's name without it); `concurrency` (calls at a time that the tool itself can bear; any number without
    it); `complete(arguments, context)` (the arguments with what the call left to its context: a result is kept under these);
    `normalise(arguments)` (arguments in the form that makes equal calls equal); `ready()` (raises ConfigError where the tool
    cannot work, for want of a key for instance; a run asks before it starts, a replay does not).
    """

    name: str
    description: str
    schema: JsonSchema  # JSON schema of the arguments (an object)

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult: ...


def isolation_of(tools: Iterable[Tool]) -> dict[str, str]:
    """How code that the policy writes is kept apart from this machine, by the tool that runs it (its attribute `isolation`)."""
    return {tool.name: kind for tool in tools if (kind := getattr(tool, "isolation", ""))}


_KINDS = {"monty": "monty, an interpreter without files and network (docs/sandbox.md)"}


def isolation_notes(tools: Iterable[Tool]) -> list[str]:
    """The same as lines, for who starts a run, an evaluation or a talk."""
    return [f"tool {name}: the model's code runs in {_KINDS.get(kind, kind)}" for name, kind in isolation_of(tools).items()]


class StatefulTool(Tool, Protocol):
    """A tool with state of its own in every branch. `fork` gives an independent copy; the original goes on unchanged."""

    async def open(self, task: Task) -> Any: ...
    async def fork(self, state: Any) -> Any: ...
    async def close(self, state: Any) -> None: ...
