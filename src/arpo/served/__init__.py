"""Agents whose model is behind an endpoint: text in, text and tool calls out. They can be evaluated and talked with,
not trained.

The seam to what an endpoint is asked: a `Dialogue` begins with a task, asks for turns, and goes on with the results of
tools. An endpoint tells neither tokens nor entropies, so trees of such agents hold turns without tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from arpo.chat import ParsedTurn
from arpo.core.tree import FinishReason, ToolCallResult
from arpo.endpoint.client import Endpoint, Usage
from arpo.tasks import Task
from arpo.tools import Tool

ONLY_EVALUATION = (
    "an endpoint returns text without its tokens and entropies, so the agent can be evaluated but not trained"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a turn is sampled, as an endpoint takes it."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int

    def fields(self) -> dict[str, Any]:
        """A field that asks for nothing is left out: some models refuse even the defaults."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p if self.top_p < 1 else None,
            "seed": None if self.temperature == 0 else self.seed % (1 << 31),
        }


class Context(Protocol):
    """What the next turn follows."""

    @property
    def num_tokens(self) -> int: ...


C = TypeVar("C", bound=Context)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTurn(Generic[C]):
    """One answer of an endpoint."""

    parsed: ParsedTurn
    finish: FinishReason
    usage: Usage  # as the endpoint counts; where it does not say, an estimate without money
    context: C  # that ends with this turn


class Dialogue(Protocol[C]):
    def begin(self, task: Task, tools: Sequence[Tool]) -> C:
        """The context of the first turn. Raises FormatError for a prompt that is too long."""
        ...

    async def ask(self, endpoint: Endpoint, context: C, sampling: Sampling) -> ServedTurn[C]:
        """The next turn. Raises ProviderError, ToolError and ToolsStoppedError as `Endpoint` does."""
        ...

    def observe(
        self,
        turn: ServedTurn[C],
        results: Sequence[ToolCallResult],
        calls_left: int | None,
        message: str | None = None,
    ) -> tuple[C, str, tuple[ToolCallResult, ...]]:
        """The context with what came back for the calls of `turn` and the user's `message` that follows, the text that
        is new in it, and the results marked `cut` where the text was cut to the token limit. With `calls_left` 0 the
        model is told that it must answer now."""
        ...

    def text(self, context: C) -> str:
        """The context as people read it."""
        ...
