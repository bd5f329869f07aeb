"""The recall world's tool: a log of pages that is read one by one (`arpo.tasks.recall`)."""

from collections.abc import Mapping
from typing import Any

from arpo.tasks import Task
from arpo.tasks.recall import TOOL, log_of
from arpo.tools import CallContext, ToolBase, ToolResult


class Note(ToolBase):
    """Writes down what is given, if anything, and turns a page. The state of a branch is the number of its pages."""

    name = TOOL
    description = "Note what you must remember, or nothing, and turn the page."
    schema: Mapping[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}}

    async def open(self, task: Task) -> list[int]:
        return [0]

    async def fork(self, state: list[int]) -> list[int]:
        return [*state]

    async def close(self, state: list[int]) -> None:
        pass

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        context.state[0] += 1
        return ToolResult(text=log_of(context.task).page(context.state[0]))
