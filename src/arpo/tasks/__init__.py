"""A task: the question that an agent gets, and its right answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question. `messages` are chat messages (`{"role", "content"}`) without the system prompt that the recipe
    adds.

    A task may bring its own surroundings: `documents` (for tools that search `CallContext.task`), `tools` (in addition
    to the recipe's) and `setup` (a JSON value with which stateful tools open).
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    answers: tuple[str, ...]  # each of them is right
    source: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    documents: tuple[Mapping[str, str], ...] = ()
    tools: Sequence[object] = ()
    setup: object = None

    @property
    def question(self) -> str:
        return str(self.messages[-1]["content"])
