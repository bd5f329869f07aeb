"""Collect scored trees: many tasks at once, yielded in data order whatever finishes first; and the record of each."""

import asyncio
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from arpo.chat import Limits, ParsedTurn, Transcript
from arpo.core.branching import StepStats
from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.place import Place, show
from arpo.core.record import TreeRecord
from arpo.core.score import Score
from arpo.core.tree import Branch, StopReason
from arpo.errors import EngineError, FormatError, ToolError
from arpo.event_loop import task_group
from arpo.foreign import checked
from arpo.rewards import Reward
from arpo.rewards.boundary import run_reward
from arpo.rollout.agent import EvalAgent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.task_rollout import TaskRollout
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


async def score(grown: TaskRollout, reward: Reward, config: RolloutConfig) -> Rollout:
    """Score every leaf that no infrastructure failure ended, then close the states of tools. Raises RewardError, and
    ToolsStoppedError where a service of the reward stays down.

    A leaf whose final states cannot be read (a tool is down), or that a service of the reward cannot judge, has no
    score, like one that a failure ended.
    """
    limits = Limits(turn_tokens=config.turn_tokens, branch_tokens=config.branch_tokens, max_calls=config.max_calls)
    transcripts: dict[Place, Transcript] = {}
    scores: dict[Place, Score] = {}

    async def of(branch: Branch) -> None:
        try:
            said = await transcript(grown, branch, limits)
            scores[branch.leaf] = await run_reward(reward, grown.task, said, config.deadline_s)
        except ToolError as error:
            grown.states.lost.append(f"{show(branch.leaf)} has no score: {error}")
            return
        transcripts[branch.leaf] = said

    try:
        async with task_group() as group:
            for branch in grown.tree.branches():
                if not branch.ending.aborted:
                    group.create_task(of(branch))
    finally:
        await grown.states.close()
    ordered = sorted(scores)  # as leaves stand in the tree, whatever was scored first
    return Rollout(
        grown=grown,
        scored=ScoredTree(grown.tree, {leaf: scores[leaf] for leaf in ordered}),
        transcripts={leaf: transcripts[leaf] for leaf in ordered},
    )


async def transcript(grown: TaskRollout, branch: Branch, limits: Limits) -> Transcript:
    """A branch as its reward sees it, with the final states of tools (those of the trunk, or new ones, where it called
    none)."""
    outcomes = [observation.outcomes for observation in branch.observations]
    rewards: tuple[float, ...] = ()
    if (episodes := grown.states.episodes) is not None:
        steps = [episodes.steps.get(turn.place) for turn in branch.turns]
        rewards = tuple(step.reward if step is not None else 0.0 for step in steps)
        if steps and steps[-1] is not None and branch.leaf in grown.discarded:  # the episode ended with these calls
            outcomes.append(tuple(grown.discarded[branch.leaf]))
    return Transcript(
        turns=tuple(grown.parsed[turn.place] for turn in branch.turns),
        outcomes=tuple(outcomes),
        ending=branch.ending.value,
        states=await grown.states.final(branch.leaf),
        rewards=rewards,
        read=tuple(grown.num_read(turn.place) for turn in branch.turns),
        written=tuple(grown.num_written(turn.place) for turn in branch.turns),
        limits=limits,
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
    rates: Mapping[str, float] | None = None,
) -> AsyncGenerator[Rollout, None]:
    """Yield the scored trees of `tasks` in their order, at most `in_flight` of them started and not yet yielded.
    `room`: a place that a tree holds while it grows, where several collections share an engine; first come, first
    served. `rates`: running accuracy by task id, for the root plan `pass_rate`.

    A tree is scored as soon as it has grown, and waits for those before it. Close the iterator (`aclose`) to stop
    early: what is still growing is cancelled. The same happens where a tree fails, when its turn comes: RewardError,
    ConfigError, a bug's error.
    """

    async def one(task: Task) -> Rollout:
        async with room or nullcontext():
            own = replace(stats, pass_rate=(rates or {}).get(task.id))
            grown = await agent.rollout(task, config, stats=own, seed=seed)
        return await score(grown, reward, config)

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


def check_scored(rollouts: Sequence[Rollout], what: str) -> None:
    """Raises EngineError (ToolError where only tools failed) with the first cause if not one leaf of `rollouts` has a
    score."""
    if not rollouts or any(rollout.scored.scores for rollout in rollouts):
        return
    causes = [
        reason
        for rollout in rollouts
        for reason in (*(why for _, why in rollout.grown.failures), *rollout.grown.states.lost)
    ]
    endings = [ending for rollout in rollouts for ending in rollout.grown.tree.endings.values()]
    kind = EngineError if StopReason.ENGINE_FAILED in endings else ToolError
    raise kind(
        f"{what}: not one of {len(endings)} trajectories could be finished and scored. First cause: "
        f"{(causes or ['?'])[0]}"
    )


def record_of(
    rollout: Rollout, credited: CreditedTree | None = None, learner: "Mapping[Place, array[float]] | None" = None
) -> TreeRecord:
    """The rollout's tree with its scores (and credit, once there is one), task and texts. `learner`: the
    log-probabilities of trained turns' tokens by the learner's weights at the start of the step."""
    task, grown = rollout.task, rollout.grown
    notes = {
        "task": {
            "id": task.id,
            "source": task.source,
            "question": task.question,
            "answers": list(task.answers),
            "family": str(task.metadata.get("family", "")),
            **({"calls": calls} if (calls := task.metadata.get("calls")) else {}),
        },
        "texts": {show(place): grown.turn_text(place) for place in grown.tree.turns},
        "read": {show(place): _reading(turn) for place, turn in grown.parsed.items() if place in grown.tree.turns},
        "states": sorted({name for said in rollout.transcripts.values() for name in said.states}),
        "prompt": grown.prompt_text(),
        "answers": {show(leaf): said.answer for leaf, said in rollout.transcripts.items()},
        "scores": {show(leaf): dict(s.notes) for leaf, s in rollout.scored.scores.items() if s.notes},
        "failures": [*(f"{show(place)}: {reason}" for place, reason in grown.failures), *grown.states.lost],
        "environment": {
            show(place): [step.reward, step.done, step.message] for place, step in grown.states.steps.items()
        },
        "discarded": {show(leaf): [outcome.tool for outcome in made] for leaf, made in grown.discarded.items()},
        "tool_s": grown.tool_s,
        "learner_logprobs": {show(place): values for place, values in (learner or {}).items()},
    }
    return TreeRecord.from_expansion(grown.expansion, credited or rollout.scored, notes)


def _reading(turn: ParsedTurn) -> dict[str, object]:
    """What a record's tree does not say of a parsed turn: its text is the first `length` characters of the turn's."""
    return {"length": len(turn.text), "answer": turn.answer, "well_formed": turn.well_formed}


def recorded_transcript(record: TreeRecord) -> Transcript | None:
    """The first branch of a record as its reward saw it, but for calls of a turn that was cut off, which never ran.

    None where the record does not say all of it: final states of stateful tools are not recorded, nor how an earlier
    version read the turns.
    """
    notes: Any = record.notes
    if notes.get("states") != []:
        return None
    turns = []
    try:
        branch = record.tree.branches()[0]
        for turn in branch.turns:
            text, reading = notes["texts"][show(turn.place)], notes["read"][show(turn.place)]
            read = {name: reading[name] for name in ("answer", "well_formed")}
            turns.append(checked(ParsedTurn(text=text[: reading["length"]], calls=turn.calls, **read)))
    except (LookupError, TypeError, FormatError):
        return None
    outcomes = tuple(observation.outcomes for observation in branch.observations)
    return Transcript(
        turns=tuple(turns),
        outcomes=outcomes,
        ending=branch.ending.value,
        states={},
        read=tuple(len(record.tree.context(turn.parent)) for turn in branch.turns),
        written=tuple(len(turn.tokens) for turn in branch.turns),
    )
