"""Chat formats connect tokens and text: they turn a task into a prompt, read a turn, and write the results of its
calls.

Nothing is tokenised twice: text is a view of tokens. A format encodes text from tools so that nothing in it can act.
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
    """The meaning of a turn. A turn without calls ends the branch."""

    text: str  # as the policy wrote it
    calls: tuple[Call, ...] = ()
    answer: str | None = None  # the content of the last answer tags, or None
    well_formed: bool = True  # the policy's text follows the protocol
    content: str = ""  # what the turn says beside its thought and its calls, as chat APIs have it; not recorded


class TraceStep(Protocol):
    """One turn of a trace before it becomes text: a thought, then text and calls, or an answer."""

    @property
    def thought(self) -> str: ...
    @property
    def text(self) -> str:
        """What the message says beside its calls; "" in most traces."""
        ...

    @property
    def calls(self) -> tuple[Call, ...]: ...
    @property
    def answer(self) -> str | None: ...


class ChatFormat(Protocol):
    """How a model and its tools converse. `stop` and `stop_tokens` end a turn; the engine gets both."""

    stop: tuple[str, ...]
    stop_tokens: tuple[int, ...]

    def render(self, task: Task, tools: Sequence[Tool]) -> array[int]:
        """Tokens of the prompt, up to the point where the policy starts to write."""
        ...

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """Read a turn. Never raises: a malformed call becomes `Call(error=...)`."""
        ...

    def observe(
        self, turn: Turn, outcomes: Sequence[ToolCallResult], calls_left: int | None, message: str | None = None
    ) -> tuple[array[int], tuple[ToolCallResult, ...]]:
        """Tokens of the observation that answers `turn`, up to the point where the policy writes again, and the
        results, with `cut` set on those that exceed the token limit. If `calls_left` is 0, the text tells the model to
        answer now. `message`: a user's message that follows the results, or answers a turn without a call."""
        ...

    def without_thought(self, text: str) -> str:
        """A turn's text, or what is left of it without its thought."""
        ...

    def encode_turn(self, text: str) -> array[int]:
        """Tokens of a turn from another author (a cold-start trace), exactly as a policy would have written them."""
        ...

    def write(self, step: TraceStep, earlier: int = 0) -> str:
        """The text that a policy would write for `step`. `earlier`: how many calls the turns before it made; 0 for the
        first turn after the prompt. Raises FormatError for a step that the format cannot express."""
        ...

    def text(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a branch may use."""

    turn_tokens: int
    branch_tokens: int  # prompt and tool text included; where contexts are rewritten, of each
    max_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A finished branch as text, for rewards.

    Turn i stands at the tokens `read[i]` to `read[i] + written[i]` of its context; before turn 0 stands the prompt."""

    turns: tuple[ParsedTurn, ...]
    outcomes: tuple[tuple[ToolCallResult, ...], ...]  # one tuple per observation
    ending: str  # value of arpo.core.StopReason
    states: Mapping[str, object]  # final states of stateful tools and of the environment, by name
    rewards: tuple[float, ...] = ()  # of the environment, one a turn; empty without one
    read: tuple[int, ...] = ()  # tokens before each turn
    written: tuple[int, ...] = ()  # tokens of each turn
    limits: Limits | None = None  # None: not known

    @property
    def length(self) -> int:
        """Tokens of the branch at its end, prompt and tool text included: of its last context."""
        return self.read[-1] + self.written[-1] if self.read else 0

    @property
    def answer(self) -> str | None:
        """The answer in the last turn, or None. An earlier answer does not count."""
        return self.turns[-1].answer if self.turns else None
