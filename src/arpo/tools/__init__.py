"""The seam to the world: tools that a policy may call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from arpo.core.tree import Status
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
    status: Status = Status.OK
    cached: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Tool(Protocol):
    name: str
    description: str
    schema: JsonSchema  # JSON schema of the arguments (an object)

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult: ...


class StatefulTool(Tool, Protocol):
    """A tool with state of its own in every branch. `fork` gives an independent copy; the original goes on unchanged."""

    async def open(self, task: Task) -> Any: ...
    async def fork(self, state: Any) -> Any: ...
    async def close(self, state: Any) -> None: ...
