"""One answer out of several: the one that most branches give.

Knows when two answers are the same: by the recipe's answer measure (`vote`), or by the recipe's judge (`judge`).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from arpo.core.place import Place
from arpo.core.tree import StopReason
from arpo.errors import ConfigError
from arpo.evaluation.judge import Judge
from arpo.recipe.run import RunConfig
from arpo.rewards.config import RewardConfig
from arpo.rewards.measures import answer_measure
from arpo.rollout.task_rollout import TaskRollout
from arpo.tasks import Task

Pick = Literal["vote", "judge"]
Same = Callable[[str, str, str], Awaitable[bool]]
"""Whether, as answers to a question, a second text says the same as a first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """What an agent answered. `str(answer)` is its text."""

    text: str
    """The answer; where the branch gave none, its last turn ("" where there is not even that)."""
    leaf: Place
    """The branch that it is from."""
    ending: StopReason
    """How that branch ended."""
    why: str = ""
    """The reason of an infrastructure failure."""
    votes: Mapping[str, int]
    """By answer, in the wording of the first branch that gave it: how many branches gave it."""
    rollout: TaskRollout
    """The whole tree."""

    def __str__(self) -> str:
        return self.text


def equality(run: RunConfig, pick: Pick, judge: Judge | None) -> Same:
    """The equality that `pick` counts by. Raises ConfigError where the recipe names no judge."""
    if pick == "judge":
        if judge is None:
            hint = "Set evaluation.judge: {url: ..., model: ..., key_env: ...}"
            raise ConfigError("the recipe has no judge", where="pick", value=pick, hint=hint)
        return lambda question, first, second: _judged(judge, question, first, second)
    if pick != "vote":
        raise ConfigError("should be vote or judge", where="pick", value=pick)
    measure = answer_measure(run.reward.answer if isinstance(run.reward, RewardConfig) else "auto")

    async def same(question: str, first: str, second: str) -> bool:
        return await measure(second, Task(id="pick", messages=(), answers=(first,))) >= 1.0

    return same


async def _judged(judge: Judge, question: str, first: str, second: str) -> bool:
    return first == second or (await judge.judge(question, [first], second))[0] == "right"


async def picked(rollout: TaskRollout, same: Same) -> AgentAnswer:
    """The answer that most branches give, of equally many the one that comes first in the tree. Branches without an
    answer have no vote."""
    branches = {branch.leaf: branch for branch in rollout.tree.branches()}
    leaves = sorted(branches, key=lambda leaf: (branches[leaf].ending.aborted, leaf))
    votes: dict[str, int] = {}
    first_of: dict[str, Place] = {}
    wordings: dict[str, str] = {}  # what each wording counts as
    for leaf in leaves:
        turns = branches[leaf].turns
        answer = rollout.parsed[turns[-1].place].answer if turns else None
        if answer is None or branches[leaf].ending.aborted:
            continue
        if answer not in wordings:
            wordings[answer] = answer
            for other in votes:
                if await same(rollout.task.question, other, answer):
                    wordings[answer] = other
                    break
        counted = wordings[answer]
        votes[counted] = votes.get(counted, 0) + 1
        first_of.setdefault(counted, leaf)
    best = max(votes, key=lambda answer: votes[answer], default=None)  # the first of equals
    leaf = leaves[0] if best is None else first_of[best]
    branch = branches[leaf]
    last = rollout.parsed[branch.turns[-1].place] if branch.turns else None
    why = [reason for place, reason in rollout.failures if place == leaf] if branch.ending.aborted else []
    return AgentAnswer(
        text=best or (last.text if last is not None else ""),
        leaf=leaf,
        ending=branch.ending,
        why=why[-1] if why else "",
        votes=votes,
        rollout=rollout,
    )
