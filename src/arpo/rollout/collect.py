"""Collect scored trees: many tasks at once, handed out in data order whatever finishes first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from arpo.chat import Transcript
from arpo.core.branching import StepStats
from arpo.core.credit import ScoredTree
from arpo.core.place import Place
from arpo.core.score import Score
from arpo.core.tree import Branch, Ending
from arpo.rewards import Reward
from arpo.rewards.boundary import run_reward
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.grow import Grown, grow
from arpo.rollout.states import line_of
from arpo.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A scored tree with how it grew and, by leaf, its transcript."""

    grown: Grown
    scored: ScoredTree
    transcripts: Mapping[Place, Transcript]

    @property
    def task(self) -> Task:
        return self.grown.task


async def score(grown: Grown, reward: Reward, deadline_s: float) -> Rollout:
    """Score every leaf that the world did not end. Raises RewardError."""
    transcripts = {branch.leaf: await transcript(grown, branch) for branch in grown.tree.branches() if not branch.ending.by_world}
    try:
        scores = await asyncio.gather(*(run_reward(reward, grown.task, said, deadline_s) for said in transcripts.values()))
    finally:
        await grown.states.close()
    by_leaf: dict[Place, Score] = dict(zip(transcripts, scores, strict=True))
    return Rollout(grown=grown, scored=ScoredTree(grown.tree, by_leaf), transcripts=transcripts)


async def transcript(grown: Grown, branch: Branch) -> Transcript:
    states = await grown.states.at(line_of(branch.leaf)) if grown.states.tools else {}
    return Transcript(
        turns=tuple(grown.chat.parse(turn.tokens) for turn in branch.turns),
        outcomes=tuple(observation.outcomes for observation in branch.observations),
        ending=Ending(branch.ending).value,
        states=states,
    )


async def collect(
    agent: Agent,
    tasks: Iterable[Task],
    reward: Reward,
    config: RolloutConfig,
    *,
    stats: StepStats,
    seed: int,
    in_flight: int,
) -> AsyncIterator[Rollout]:
    """Yield the scored trees of `tasks` in their order, `in_flight` of them growing at a time.

    Close the iterator to stop early: what is still growing is cancelled. A tree is scored as soon as it has grown.
    """

    async def one(task: Task) -> Rollout:
        return await score(await grow(agent, task, config, stats=stats, seed=seed), reward, config.reward_deadline_s)

    waiting = iter(tasks)
    growing: deque[asyncio.Task[Rollout]] = deque()
    try:
        for task in waiting:
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
