"""An agent: a policy with its chat format and tools. Training, evaluation and chat all use this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arpo.chat import ChatFormat
from arpo.engines import Engine
from arpo.tasks import Task
from arpo.tools import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    engine: Engine
    tools: tuple[Tool, ...]
    format: Callable[[Sequence[Tool]], ChatFormat]  # the chat format for a set of tools
    vocab_size: int

    def chat(self, task: Task) -> tuple[ChatFormat, tuple[Tool, ...]]:
        """The chat format and tools for `task`: the agent's, and what the task itself brings."""
        tools = (*self.tools, *task.tools) if task.tools else self.tools
        return self.format(tools), tools  # type: ignore[return-value, arg-type]
