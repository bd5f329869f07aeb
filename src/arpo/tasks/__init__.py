"""Tasks: what an agent is asked, and what a right answer is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question. `messages` are chat messages (`{"role", "content"}`) without the system prompt that the recipe adds.

    A task may bring its own world: `documents` (searched by tools that ask for them through `CallContext.task`), `tools` (offered
    besides the recipe's) and `setup` (a JSON value that stateful tools open with).
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    answers: tuple[str, ...]  # any of them is right
    source: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    documents: tuple[Mapping[str, str], ...] = ()
    tools: Sequence[object] = ()
    setup: object = None

    @property
    def question(self) -> str:
        return str(self.messages[-1]["content"])
