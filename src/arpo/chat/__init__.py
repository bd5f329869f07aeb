"""The seam between tokens and text: how a task becomes a prompt, what a turn means, how results come back.

Nothing is ever tokenised twice: text is a view of tokens. Text from tools is encoded so that nothing in it can act.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from arpo.core.tree import Call, ToolCallResult, Turn
from arpo.tasks import Task
from arpo.tools import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTurn:
    """What a turn says. No calls: the policy means to end here."""

    text: str  # as the policy wrote it
    calls: tuple[Call, ...] = ()
    answer: str | None = None  # what stands in the answer marks (last one), None without
    well_formed: bool = True  # follows the protocol (model-written text only)


class TraceStep(Protocol):
    """One turn of a demonstration, not yet text: a thought, then calls or an answer."""

    @property
    def thought(self) -> str: ...
    @property
    def calls(self) -> tuple[Call, ...]: ...
    @property
    def answer(self) -> str | None: ...


class ChatFormat(Protocol):
    """`stop` and `stop_tokens` are what ends a turn; an engine is given both."""

    stop: tuple[str, ...]
    stop_tokens: tuple[int, ...]

    def render(self, task: Task, tools: Sequence[Tool]) -> array[int]:
        """Tokens of the prompt, up to where the policy starts to write."""
        ...

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """What the turn with these tokens says. Never raises: malformed calls come back as `Call(error=...)`."""
        ...

    def observe(
        self, turn: Turn, outcomes: Sequence[ToolCallResult], calls_left: int | None
    ) -> tuple[array[int], tuple[ToolCallResult, ...]]:
        """Tokens of the observation that answers `turn`, up to where the policy writes again, and the outcomes marked `cut`
        where the text was cut to the token limit. With `calls_left` 0 the model is told that it must answer now."""
        ...

    def encode_turn(self, text: str) -> array[int]:
        """Tokens of a turn written by somebody else (cold-start traces), exactly as a policy would have written it."""
        ...

    def write(self, step: TraceStep, first: bool = False) -> str:
        """The text that a policy would write for `step`, which is the first after the prompt or a later one. Raises FormatError for
        what the format cannot say."""
        ...

    def text(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A finished branch as text, for rewards."""

    turns: tuple[ParsedTurn, ...]
    outcomes: tuple[tuple[ToolCallResult, ...], ...]  # one tuple an observation
    ending: str  # value of arpo.core.StopReason
    states: Mapping[str, object]  # final states of stateful tools, by tool name

    @property
    def answer(self) -> str | None:
        """The answer in the last turn, or None: an answer earlier on does not count."""
        return self.turns[-1].answer if self.turns else None
