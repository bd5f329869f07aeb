"""What a finished tree is to its rewards, its record and its metrics.

Knows the tree and the text of its turns. Refuses to know how it grew.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from arpo.chat import ChatFormat, ParsedTurn
from arpo.core.expansion import Expansion
from arpo.core.place import Place
from arpo.core.tree import RolloutTree, ToolCallResult
from arpo.rollout.states import ToolStates
from arpo.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRollout(ABC):
    """A finished tree with what its rewards, record and metrics need, whoever wrote its turns."""

    task: Task
    expansion: Expansion
    parsed: Mapping[Place, ParsedTurn]  # what every turn says
    states: ToolStates  # final states of tools; closed by whoever scores the tree
    failures: tuple[
        tuple[Place, str], ...
    ]  # of the infrastructure, with reasons, those that a further attempt mended included
    discarded: Mapping[
        Place, tuple[ToolCallResult, ...]
    ]  # by leaf: calls that were made, but whose results the model was never shown
    tool_s: float  # seconds spent in tools, summed over calls
    waited_s: float  # seconds between a tip's head and its decision, summed over decisions that had to wait for others

    @property
    def tree(self) -> RolloutTree:
        return self.expansion.tree

    @property
    def planned_roots(self) -> int:
        """N: what the plan came to (a finished tree has one)."""
        assert self.expansion.planned_roots is not None
        return self.expansion.planned_roots

    @abstractmethod
    def prompt_text(self) -> str: ...

    @abstractmethod
    def turn_text(self, place: Place) -> str:
        """The turn at `place` as people read it."""

    @abstractmethod
    def observation_text(self, place: Place) -> str:
        """What the model read after the turn at `place`."""

    @abstractmethod
    def num_read(self, place: Place) -> int:
        """Tokens before the turn at `place`."""

    @abstractmethod
    def num_written(self, place: Place) -> int:
        """Tokens of the turn at `place`."""

    def money(self, place: Place) -> float:
        """What the turn at `place` cost."""
        return 0.0

    def text(self, leaf: Place) -> str:
        """A branch after its prompt."""
        parts = []
        for depth in range(1, len(leaf) + 1):
            place = leaf[:depth]
            if place in self.tree.turns:
                parts.append(self.turn_text(place))
            if place in self.tree.observations:
                parts.append(self.observation_text(place))
        return "".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRollout(TaskRollout):
    """A tree of tokens, whose text `chat` reads."""

    chat: ChatFormat

    def prompt_text(self) -> str:
        return self.chat.text(self.tree.prompt.tokens)

    def turn_text(self, place: Place) -> str:
        return self.chat.text(self.tree.turns[place].tokens)

    def observation_text(self, place: Place) -> str:
        return self.chat.text(self.tree.observations[place].tokens)

    def num_read(self, place: Place) -> int:
        return len(self.tree.context(place[:-1]))

    def num_written(self, place: Place) -> int:
        return len(self.tree.turns[place].tokens)
