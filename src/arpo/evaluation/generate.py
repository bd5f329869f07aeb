"""Generate and score the samples of an evaluation, many at once; each is yielded as soon as it is scored.

The rollout is that of training without branches: every sample is a tree with one leaf. Knows rollouts and failures. Refuses to know
files and statistics.
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
from arpo.core.tree import Branch, ToolCallResult
from arpo.engines.base import EngineBase
from arpo.errors import ConfigError, FormatError, RewardError
from arpo.evaluation.samples import NOT_ASKED, NOT_SCORED, Key, SampleRecord
from arpo.rewards import Reward
from arpo.rollout.agent import Agent
from arpo.rollout.collect import Rollout, record_of, score
from arpo.rollout.config import RolloutConfig
from arpo.rollout.tree_rollout import TreeRollout, rollout_tree
from arpo.tasks import Task

STEP = "evaluation"  # of the keys of random numbers: one word for all evaluations, so that draws do not depend on a name
_IN_WORDS = frozenset({"f1", "exact", "contains", "short"})  # measures of short texts, which get exact, f1 and contains too


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
    """A scored sample. `record`: its trajectory, None where the question could not be asked; `outcomes`: of all its tool calls."""

    sample: SampleRecord
    record: TreeRecord | None = None
    outcomes: Sequence[ToolCallResult] = ()


async def generate(
    agent: Agent, questions: Iterable[EvalQuestion], reward: Reward, rollout: RolloutConfig, *, seed: int, in_flight: int
) -> AsyncGenerator[Generated, None]:
    """Yield a sample for each of `questions`, generating `in_flight` of them at a time.

    `rollout` is flat, with one leaf (`RolloutConfig.flat`). Randomness is keyed by seed, task and number, so two models asked with
    one seed face the same draws. Where infrastructure fails the sample has a `failure`. What propagates is a bug, or
    ToolsStoppedError: then the samples under way are cancelled.
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
            for finished in sorted(done, key=lambda task: task.exception() is not None):  # samples first: a bug loses none
                yield finished.result()
    finally:
        for unfinished in running:
            unfinished.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _generate_one(agent: Agent, question: EvalQuestion, reward: Reward, rollout: RolloutConfig, seed: int) -> Generated:
    started, task = time.perf_counter(), question.task
    try:
        chat, tools = agent.chat(task)
        room = rollout.branch_tokens - len(chat.render(task, tools))
        if room <= 0:
            raise ConfigError(f"the prompt leaves no room for a turn in rollout.branch_tokens ({rollout.branch_tokens})")
    except (FormatError, ConfigError) as error:  # longer than chat.prompt_tokens, or than a branch
        return Generated(_not_asked(question, str(error), time.perf_counter() - started))
    grown = await rollout_tree(agent, task, rollout, stats=StepStats(step=f"{STEP}/{question.number}"), seed=seed)
    failure = ""
    try:
        done = await score(grown, reward, rollout.reward_deadline_s)
    except RewardError as error:
        failure, done = str(error), Rollout(grown=grown, scored=ScoredTree(grown.tree, {}), transcripts={})
    branch = grown.tree.branches()[0]
    outcomes = [*chain(*(seen.outcomes for seen in branch.observations)), *grown.discarded.get(branch.leaf, ())]
    sample = _sample(question, done, outcomes, agent.engine, failure, time.perf_counter() - started)
    return Generated(sample, record_of(done), outcomes)


def _not_asked(question: EvalQuestion, reason: str, seconds: float) -> SampleRecord:
    wrong = SampleRecord(**_about(question), accuracy=0.0, correct=False, reward=0.0)
    return replace(wrong, ending=NOT_ASKED, failure=reason, seconds=seconds)


def _sample(
    question: EvalQuestion, done: Rollout, outcomes: Sequence[ToolCallResult], engine: EngineBase, failure: str, seconds: float
) -> SampleRecord:
    grown = done.grown
    branch = grown.tree.branches()[0]
    score, transcript = done.scored.scores.get(branch.leaf), done.transcripts.get(branch.leaf)
    answer = transcript.answer if transcript else None
    if not failure and not score:
        failure = "; ".join([*(why for _, why in grown.failures), *grown.states.lost]) or branch.ending.value
    read, written = _read_tokens(grown, branch), sum(len(turn.tokens) for turn in branch.turns)
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
        tokens=written,
        read_tokens=read,
        seconds=seconds,
        tool_s=grown.tool_s,
        cost=sum(outcome.cost for outcome in outcomes) + engine.cost(read, written),
        ending=NOT_SCORED if failure and not branch.ending.aborted else branch.ending.value,
        failure=failure,
        transcript="".join(grown.chat.text(segment.tokens) for segment in grown.tree.path(branch.leaf)[1:]),
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


def _read_tokens(grown: TreeRollout, branch: Branch) -> int:
    return sum(len(grown.tree.context(turn.place[:-1])) for turn in branch.turns)


def _measures(answer: str | None, task: Task) -> Mapping[str, float]:
    """Exact match, F1 and containment beside the benchmark's own measure, where its answers are short texts: best gold each."""
    if str(task.metadata.get("measure", "")) not in _IN_WORDS or not task.answers:
        return {}
    named = {"exact": exact, "f1": f1, "contains": contains}
    return {name: max(0.0 if answer is None else measure(answer, gold) for gold in task.answers) for name, measure in named.items()}
