"""Generate and score the samples of an evaluation, many at once; each is yielded as soon as it is scored.

The rollout is that of training without branches: every sample is a tree with one leaf. Knows rollouts and failures.
Refuses to know files and statistics.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from arpo.answer_text import contains, exact, f1
from arpo.core.branching import StepStats
from arpo.core.credit import ScoredTree
from arpo.core.record import TreeRecord
from arpo.core.tree import ToolCallResult
from arpo.errors import ConfigError, FormatError, RewardError
from arpo.evaluation.samples import NOT_ASKED, NOT_SCORED, Key, SampleRecord
from arpo.rewards import Reward
from arpo.rollout.agent import EvalAgent
from arpo.rollout.collect import Rollout, record_of, score
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task

STEP = (
    "evaluation"  # of the keys of random numbers: one word for all evaluations, so that draws do not depend on a name
)
_IN_WORDS = frozenset(
    {"f1", "exact", "contains", "short"}
)  # measures of short texts, which get exact, f1 and contains too


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """One sample to be generated: `number` counts the answers to one task from 0."""

    benchmark: str
    task: Task
    number: int

    @property
    def key(self) -> Key:
        return self.benchmark, self.task.id, self.number


@dataclass(frozen=True, slots=True)
class Generated:
    """A scored sample. `record`: its trajectory, None where the question could not be asked; `outcomes`: of all its
    tool calls."""

    sample: SampleRecord
    record: TreeRecord | None = None
    outcomes: Sequence[ToolCallResult] = ()


async def generate(
    agent: EvalAgent,
    questions: Iterable[EvalQuestion],
    reward: Reward,
    rollout: RolloutConfig,
    *,
    seed: int,
    in_flight: int,
) -> AsyncGenerator[Generated, None]:
    """Yield a sample for each of `questions`, generating `in_flight` of them at a time.

    `rollout` is flat, with one leaf (`RolloutConfig.flat`). Randomness is keyed by seed, task and number, so two models
    asked with one seed face the same draws. Where infrastructure fails the sample has a `failure`. What propagates is a
    bug, or ToolsStoppedError: then the samples under way are cancelled.
    """
    waiting, running = iter(questions), set[asyncio.Task[Generated]]()
    try:
        while True:
            running |= {
                asyncio.create_task(_generate_one(agent, question, reward, rollout, seed))
                for question in islice(waiting, in_flight - len(running))
            }
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for finished in sorted(
                done, key=lambda task: task.exception() is not None
            ):  # samples first: a bug loses none
                yield finished.result()
    finally:
        for unfinished in running:
            unfinished.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _generate_one(
    agent: EvalAgent, question: EvalQuestion, reward: Reward, rollout: RolloutConfig, seed: int
) -> Generated:
    started, task = time.perf_counter(), question.task
    try:
        if agent.num_prompt_tokens(task) >= rollout.branch_tokens:
            raise ConfigError(
                f"the prompt leaves no room for a turn in rollout.branch_tokens ({rollout.branch_tokens})"
            )
    except (FormatError, ConfigError) as error:  # longer than chat.prompt_tokens, or than a branch
        return Generated(_not_asked(question, str(error), time.perf_counter() - started))
    stats = StepStats(step=f"{STEP}/{question.number}")
    grown = await agent.rollout(task, rollout, stats=stats, seed=seed)
    failure = ""
    try:
        done = await score(grown, reward, rollout)
    except RewardError as error:
        failure, done = str(error), Rollout(grown=grown, scored=ScoredTree(grown.tree, {}), transcripts={})
    branch = grown.tree.branches()[0]
    outcomes = [*chain(*(seen.outcomes for seen in branch.observations)), *grown.discarded.get(branch.leaf, ())]
    sample = _sample(question, done, outcomes, failure, time.perf_counter() - started)
    return Generated(sample, record_of(done), outcomes)


def _not_asked(question: EvalQuestion, reason: str, seconds: float) -> SampleRecord:
    wrong = SampleRecord(**_about(question), accuracy=0.0, correct=False, reward=0.0)
    return replace(wrong, ending=NOT_ASKED, failure=reason, seconds=seconds)


def _sample(
    question: EvalQuestion, done: Rollout, outcomes: Sequence[ToolCallResult], failure: str, seconds: float
) -> SampleRecord:
    grown = done.grown
    branch = grown.tree.branches()[0]
    score, transcript = done.scored.scores.get(branch.leaf), done.transcripts.get(branch.leaf)
    answer = transcript.answer if transcript else None
    if not failure and not score:
        failure = "; ".join([*(why for _, why in grown.failures), *grown.states.lost]) or branch.ending.value
    places = [turn.place for turn in branch.turns]
    return SampleRecord(
        **_about(question),
        answer=answer,
        accuracy=score.accuracy if score else 0.0,
        correct=bool(score and score.accuracy >= 0.5),
        reward=score.reward if score else 0.0,
        measures=_measures(answer, question.task),
        calls=sum(outcome.answered for outcome in outcomes),
        asked_calls=sum(len(turn.calls) for turn in branch.turns),
        turns=len(branch.turns),
        tokens=sum(map(grown.num_written, places)),
        read_tokens=sum(map(grown.num_read, places)),
        seconds=seconds,
        tool_s=grown.tool_s,
        cost=sum(outcome.cost for outcome in outcomes) + sum(map(grown.money, places)),
        ending=NOT_SCORED if failure and not branch.ending.aborted else branch.ending.value,
        failure=failure,
        transcript=grown.text(branch.leaf),
    )


def _about(question: EvalQuestion) -> dict[str, Any]:
    task = question.task
    return {
        "benchmark": question.benchmark,
        "id": task.id,
        "sample": question.number,
        "family": str(task.metadata.get("family") or task.source or question.benchmark),
        "level": str(task.metadata.get("level", "")),
        "category": str(task.metadata.get("category", "")),
        "metric": str(task.metadata.get("measure", "")),
        "question": str(task.metadata.get("question") or task.question),
        "gold": task.answers,
    }


def _measures(answer: str | None, task: Task) -> Mapping[str, float]:
    """Exact match, F1 and containment beside the benchmark's own measure, where its answers are short texts: best gold
    each."""
    if str(task.metadata.get("measure", "")) not in _IN_WORDS or not task.answers:
        return {}
    named = {"exact": exact, "f1": f1, "contains": contains}
    return {
        name: max(0.0 if answer is None else measure(answer, gold) for gold in task.answers)
        for name, measure in named.items()
    }
