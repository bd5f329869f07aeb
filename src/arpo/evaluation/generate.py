"""Ask an agent many questions at once, and hand out each answer as soon as it is scored, whatever finishes first.

Every sample of a question is a tree of its own with one branch, so that it can be written down alone. Knows rollouts and failures.
Refuses to know files and statistics.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

from arpo.answer_text import contains, exact, f1
from arpo.core.branching import StepStats
from arpo.core.credit import ScoredTree
from arpo.core.record import TreeRecord
from arpo.errors import ConfigError, FormatError, RewardError
from arpo.evaluation.evaluate import STEP, sample_of
from arpo.evaluation.samples import NOT_ASKED, NOT_SCORED, SampleRecord
from arpo.rewards import Reward
from arpo.rollout.agent import EvalAgent
from arpo.rollout.collect import Rollout, record_of, score
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task

_IN_WORDS = frozenset(
    {"f1", "exact", "contains", "short"}
)  # measures of short texts: the others of this kind are given beside them


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """One sample that is wanted: `number` counts the answers to one task from 0."""

    benchmark: str
    task: Task
    number: int


async def generate(
    agent: EvalAgent, questions: Iterable[EvalQuestion], reward: Reward, rollout: RolloutConfig, *, seed: int, in_flight: int
) -> AsyncGenerator[tuple[SampleRecord, TreeRecord | None], None]:
    """Yield an answer with its trajectory (None where there is none) for each of `questions`, `in_flight` of them at a time.

    `rollout` is flat, with one leaf (`RolloutConfig.flat`). Randomness is keyed by seed, task and number. A question that the world
    ended is an answer with its `failure`. What propagates is a bug, or ToolsStoppedError: then what runs is cancelled.
    """

    async def one(question: EvalQuestion) -> tuple[SampleRecord, TreeRecord | None]:
        return await _answer(agent, question, reward, rollout, seed)

    waiting, running = iter(questions), set[asyncio.Task[tuple[SampleRecord, TreeRecord | None]]]()
    try:
        while True:
            running |= {asyncio.create_task(one(question)) for question in islice(waiting, in_flight - len(running))}
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for finished in sorted(done, key=lambda task: task.exception() is not None):  # answers first: none is lost to a bug
                yield finished.result()
    finally:
        for unfinished in running:
            unfinished.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _answer(
    agent: EvalAgent, question: EvalQuestion, reward: Reward, rollout: RolloutConfig, seed: int
) -> tuple[SampleRecord, TreeRecord | None]:
    started, task = time.perf_counter(), question.task
    try:
        if agent.num_prompt_tokens(task) >= rollout.branch_tokens:
            raise ConfigError(f"the prompt leaves no room for a turn in rollout.branch_tokens ({rollout.branch_tokens})")
    except (FormatError, ConfigError) as error:  # longer than chat.prompt_tokens, or than a branch
        return _not_asked(question, str(error), time.perf_counter() - started), None
    stats = StepStats(step=f"{STEP}/{question.number}")
    grown = await agent.rollout(task, rollout, stats=stats, seed=seed)
    failure = ""
    try:
        done = await score(grown, reward, rollout.reward_deadline_s)
    except RewardError as error:
        failure, done = str(error), Rollout(grown=grown, scored=ScoredTree(grown.tree, {}), transcripts={})
    return _of(question, done, failure, time.perf_counter() - started), record_of(done)


def _not_asked(question: EvalQuestion, reason: str, seconds: float) -> SampleRecord:
    return SampleRecord(
        **_what(question),
        accuracy=0.0,
        correct=False,
        reward=0.0,
        ending=NOT_ASKED,
        failure=reason,
        seconds=seconds,
    )


def _of(question: EvalQuestion, done: Rollout, failure: str, seconds: float) -> SampleRecord:
    branch = done.grown.tree.branches()[0]
    sample: dict[str, Any] = asdict(sample_of(done, branch))
    outcomes = [
        *chain(*(observation.outcomes for observation in branch.observations)),
        *done.grown.discarded.get(branch.leaf, ()),
    ]
    places = [turn.place for turn in branch.turns]
    if not failure and not done.scored.scores:
        failure = "; ".join([*(why for _, why in done.grown.failures), *done.grown.states.lost]) or branch.ending.value
    ending = NOT_SCORED if failure and not branch.ending.aborted else branch.ending.value
    return SampleRecord(
        **{  # what the benchmark says of itself counts before what the sample guessed
            **sample,
            **_what(question),
            "ending": ending,
            "asked_calls": sum(len(turn.calls) for turn in branch.turns),
            "turns": len(branch.turns),
            "read_tokens": sum(map(done.grown.num_read, places)),
            "seconds": seconds,
            "tool_s": done.grown.tool_s,
            "cost": sum(outcome.cost for outcome in outcomes) + sum(map(done.grown.money, places)),
            "failure": failure,
            "measures": _measures(sample["answer"], question.task),
        }
    )


def _what(question: EvalQuestion) -> dict[str, Any]:
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
    """Exact match, F1 and containment beside the benchmark's own measure, where its answers are short texts: best gold each."""
    if str(task.metadata.get("measure", "")) not in _IN_WORDS or not task.answers:
        return {}
    named = {"exact": exact, "f1": f1, "contains": contains}
    return {name: max(0.0 if answer is None else measure(answer, gold) for gold in task.answers) for name, measure in named.items()}
