"""What a rollout tells whoever watches it: text while a turn is written, turns, results, branches, endings.

Values only. The rollout is the same with and without a watcher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arpo.chat import ChatFormat, ParsedTurn
from arpo.core.place import Place
from arpo.core.tree import StopReason, ToolCallResult


@dataclass(frozen=True, slots=True)
class TextWritten:
    """The next text of the turn at `place`. A higher `attempt` than before starts the turn again."""

    place: Place
    text: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class TurnWritten:
    """The turn at `place` is complete."""

    place: Place
    turn: ParsedTurn


@dataclass(frozen=True, slots=True)
class ResultsRead:
    """What came back for the turn at `place`: the results of its calls, and the text of all that the model reads
    (of the results alone where it reads them in a new context)."""

    place: Place
    results: tuple[ToolCallResult, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Branched:
    """After what came back for the turn at `place`, `siblings` more turns start beside the first."""

    place: Place
    siblings: int


@dataclass(frozen=True, slots=True)
class BranchEnded:
    """The branch that ends with the turn at `place` is finished. `why`: the reason of an infrastructure failure."""

    place: Place
    ending: StopReason
    why: str = ""


RolloutEvent = TextWritten | TurnWritten | ResultsRead | Branched | BranchEnded
Watch = Callable[[RolloutEvent], None]


class TurnText:
    """The text of a turn whose tokens come in chunks."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat, self.shown = chat, ""

    def grown(self, tokens: Sequence[int], finished: bool) -> str:
        """The text that is new now that the turn has `tokens`. An incomplete character waits for its other tokens."""
        text = self.chat.text(tokens)  # of the whole turn: a chunk may begin inside a character
        text = self._up_to_its_end(text if finished else text.rstrip("\ufffd"))
        new, self.shown = text[len(self.shown) :], text
        return new

    def _up_to_its_end(self, text: str) -> str:
        """`text` without what the last token of a stop string brought along (`</answer><` where one token is `><`)."""
        ends = [at + len(stop) for stop in self.chat.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text
