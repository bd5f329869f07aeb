"""An agent: a policy with its chat format and tools. Training, evaluation and chat all use this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from arpo.chat import ChatFormat
from arpo.engines.base import EngineBase
from arpo.tasks import Task
from arpo.tools import Tool, ToolBase, with_defaults
from arpo.tools.gateway import ToolGateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    engine: EngineBase
    tools: tuple[ToolBase, ...]
    format: Callable[[Sequence[Tool]], ChatFormat]  # the chat format for a set of tools
    vocab_size: int
    tool_gateway: ToolGateway = field(default_factory=ToolGateway)  # what stands around calls: cache, limits, accounts

    def chat(self, task: Task) -> tuple[ChatFormat, tuple[ToolBase, ...]]:
        """The chat format and tools for `task`: the agent's, and what the task brings (of two with one name, the task's)."""
        tools = self.tools
        if task.tools:
            brought = map(with_defaults, cast(Sequence[Tool], task.tools))
            tools = tuple({tool.name: tool for tool in (*self.tools, *brought)}.values())
        return self.format(tools), tools
