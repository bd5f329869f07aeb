"""Collect scored trees: many tasks at once, handed out in data order whatever finishes first."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from arpo.chat import Transcript
from arpo.core.branching import StepStats
from arpo.core.credit import ScoredTree
from arpo.core.place import Place, show
from arpo.core.score import Score
from arpo.core.tree import Branch
from arpo.errors import ToolError
from arpo.rewards import Reward
from arpo.rewards.boundary import run_reward
from arpo.rollout.agent import EvalAgent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.together import together
from arpo.rollout.tree_rollout import TaskRollout
from arpo.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A scored tree with how it grew and, by leaf, its transcript."""

    grown: TaskRollout
    scored: ScoredTree
    transcripts: Mapping[Place, Transcript]

    @property
    def task(self) -> Task:
        return self.grown.task


async def score(grown: TaskRollout, reward: Reward, deadline_s: float) -> Rollout:
    """Score every leaf that the world did not end, then close the states of tools. Raises RewardError.

    A leaf whose final states cannot be had (a tool is down) goes without a score, like one that the world ended.
    """
    transcripts: dict[Place, Transcript] = {}
    scores: dict[Place, Score] = {}

    async def of(branch: Branch) -> None:
        try:
            said = await transcript(grown, branch)
        except ToolError as error:
            grown.states.lost.append(f"{show(branch.leaf)} has no score: {error}")
            return
        scores[branch.leaf] = await run_reward(reward, grown.task, said, deadline_s)
        transcripts[branch.leaf] = said

    try:
        async with together() as group:
            for branch in grown.tree.branches():
                if not branch.ending.by_world:
                    group.create_task(of(branch))
    finally:
        await grown.states.close()
    ordered = sorted(scores)  # as leaves stand in the tree, whatever was scored first
    return Rollout(
        grown=grown,
        scored=ScoredTree(grown.tree, {leaf: scores[leaf] for leaf in ordered}),
        transcripts={leaf: transcripts[leaf] for leaf in ordered},
    )


async def transcript(grown: TaskRollout, branch: Branch) -> Transcript:
    """A branch as its reward sees it, with the final states of tools (those of the trunk, or new ones, where it called none)."""
    return Transcript(
        turns=tuple(grown.parsed[turn.place] for turn in branch.turns),
        outcomes=tuple(observation.outcomes for observation in branch.observations),
        ending=branch.ending.value,
        states=await grown.states.at(branch.leaf),
    )


async def collect(
    agent: EvalAgent,
    tasks: Iterable[Task],
    reward: Reward,
    config: RolloutConfig,
    *,
    stats: StepStats,
    seed: int,
    in_flight: int,
    room: asyncio.Semaphore | None = None,
) -> AsyncGenerator[Rollout, None]:
    """Yield the scored trees of `tasks` in their order, at most `in_flight` of them started and not yet yielded. `room`: a place
    that a tree holds while it grows, where several collections share an engine; first come, first served.

    A tree is scored as soon as it has grown, and waits for those before it. Close the iterator (`aclose`) to stop early: what is
    still growing is cancelled. The same happens where a tree fails, when its turn comes: RewardError, ConfigError, a bug's error.
    """

    async def one(task: Task) -> Rollout:
        async with room or nullcontext():
            grown = await agent.rollout(task, config, stats=stats, seed=seed)
        return await score(grown, reward, config.reward_deadline_s)

    growing: deque[asyncio.Task[Rollout]] = deque()
    try:
        for task in tasks:
            growing.append(asyncio.create_task(one(task)))
            if len(growing) >= in_flight:
                yield await _first(growing)
        while growing:
            yield await _first(growing)
    finally:
        for unfinished in growing:
            unfinished.cancel()
        await asyncio.gather(*growing, return_exceptions=True)


async def _first(growing: "deque[asyncio.Task[Rollout]]") -> Rollout:
    rollout = await growing[0]
    growing.popleft()
    return rollout
