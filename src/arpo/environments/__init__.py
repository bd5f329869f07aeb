"""Environments: what an agent acts in where a set of tools is not enough. An episode has a state that its tools share,
answers turns without a call (a user, a game, a compiler), says when it is over and what a turn earned.

    class Counter(arpo.Environment):
        def reset(self, task):
            self.total = 0
            return "Reach 10."

        @arpo.tool
        def add(self, number: int) -> int:
            '''Adds a number to the total.'''
            self.total += number
            return self.total

        def step(self, turn):
            return arpo.Step(done=self.total >= 10, reward=float(self.total == 10), message="Go on.")
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal, Self

from arpo.core.tree import Call, ToolCallResult
from arpo.tasks import Task

Start = str | Sequence[Mapping[str, str]] | Task | None
"""What an episode starts with: a user's message, messages, a task (messages, and tools of its own); None: the task's
own messages."""


def setup_of(task: Task) -> Mapping[str, Any]:
    """What a task says of its episode in `setup`; empty where that is no mapping."""
    return task.setup if isinstance(task.setup, Mapping) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTurn:
    """One turn of the agent, when its calls have run."""

    text: str  # as the policy wrote it, with its thought
    answer: str | None = None  # what stands in answer marks or a box, else the text after the thought; None: a call
    calls: tuple[Call, ...] = ()
    results: tuple[ToolCallResult, ...] = ()  # of all its calls, in their order
    content: str = ""  # its text beside its thought and its calls
    number: int = 0  # turns of the episode before it

    @property
    def said(self) -> str:
        """The answer, or all of the text where the format reads none from it."""
        return (self.text if self.answer is None else self.answer).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What comes of a turn. `message` follows the results of its calls, as a user's message; an episode that goes on
    after a turn without a call has one. `reward`: of this turn alone. `results`: texts in place of the results of the
    calls that ran, where they are known only now. `context`: chat messages that the agent reads from now on, in place
    of all before them."""

    message: str | None = None
    results: tuple[str, ...] | None = None
    context: Sequence[Mapping[str, Any]] | None = None
    done: bool = False
    reward: float = 0.0


class Environment:
    """One episode. Derive from it; a class may take options in `__init__`, which a recipe gives.

    Methods marked `@arpo.tool` are the agent's tools and work on this object. Every method may be `async def`; the
    others run in threads, those of one episode one after another. Whatever `reset`, `step` or `fork` raises ends the
    branch as `environment_failed`, without a reward; a ProviderError (a service is down) is retried as a tool's.
    """

    name: ClassVar[str] = ""
    """In messages and in `transcript.states`; "": the class's name in lower case."""
    forks: ClassVar[Literal["copy", "replay", "never"]] = "copy"
    """How a branch gets its own state: by `fork`; by a new episode in which the turns so far are repeated (also where
    `fork` raises TypeError or NotImplementedError); or not at all, so that its tasks do not branch."""
    concurrency: ClassVar[int] = 0
    """Resets, steps and calls at a time, over all episodes; 0: any number."""
    deadline_s: ClassVar[float | None] = None
    """Seconds that one of them may take; None: `rollout.deadline_s`."""
    rewards: ClassVar[bool] = True
    """Whether the rewards of its steps are the run's reward where the recipe says nothing under `reward`."""

    random: Random
    """Set before `reset` and before every turn, from the run's seed and the place in the tree: all randomness of an
    episode should come from it."""

    def reset(self, task: Task) -> Start | Any:
        """Begin an episode of `task`. All trajectories of a task begin alike."""
        return None

    def step(self, turn: AgentTurn) -> Step | Any:
        """What comes of a turn, when its calls have run. By default a turn without a call ends the episode."""
        return Step(done=not turn.calls)

    def fork(self) -> Self | Any:
        """An independent copy; this episode goes on unchanged."""
        return copy.deepcopy(self)

    def close(self) -> Any:
        """Let go of what the episode holds."""
