"""The whole path (prompt, tools, extraction, measure) on every file: who knows the golds is right, who answers wrongly
never, and who answers with another question's gold almost never."""

import asyncio
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from arpo.answer_text import exact
from arpo.chat.tags import TagFormat
from arpo.engines.scripted import ScriptedEngine
from arpo.evaluation.generate import EvalQuestion, generate
from arpo.evaluation.samples import SampleRecord
from arpo.rewards import Reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task
from arpo.tasks.benchmarks import benchmark
from arpo.tools import CallContext, ToolBase, ToolResult

DATA = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"
FILES = ("aime24", "aime25", "math500", "gsm8k", "hotpotqa", "2wiki", "bamboogle", "webwalker", "xbench", "simpleqa")
SIZES = {"head": 4, "turn_tokens": 2000, "branch_tokens": 20_000}
WRONG = "-987654321"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' files are not here")


class Library(ToolBase):
    """A tool that every question is looked up with once."""

    name = "search"
    description = "Finds facts."
    schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}  # noqa: RUF012

    async def __call__(self, arguments: Any, context: CallContext) -> ToolResult:
        return ToolResult(text=f"Nothing but the name {arguments['query']}.")


@cache
def reward() -> Reward:
    """One for all: it may keep a process for formulas."""
    return build_reward(RewardConfig())


def asked(tokenizer: Any, tasks: list[Task], answers: dict[str, str]) -> list[SampleRecord]:
    """The samples of an agent that looks a question's id up, and then answers as `answers` has it."""
    form = partial(TagFormat, tokenizer)
    chat = form((Library(),))
    ids = {chat.render(task, (Library(),)).tobytes(): task.id for task in tasks}

    def play(prompt: Any, params: Any) -> str:
        first = ids.get(prompt.tobytes())
        if first is not None:
            return f"<think>I look it up.</think><search>{first}</search>"
        seen = tokenizer.decode(list(prompt)).rpartition("<search>")[2].partition("</search>")[0]
        return f"<think>Now I know.</think><answer>The answer is \\boxed{{{answers[seen]}}}</answer>"

    who = Agent(engine=ScriptedEngine(play, tokenizer), tools=(Library(),), format=form, vocab_size=len(tokenizer))
    rules = RolloutConfig(**SIZES).flat(leaves=1, temperature=1.0, top_p=1.0)
    questions = [EvalQuestion(task.source, task, 0) for task in tasks]

    async def samples() -> list[SampleRecord]:
        # Few at a time: formulas wait for each other in one process, and that counts against a reward's 30 s.
        return [each.sample async for each in generate(who, questions, reward(), rules, seed=0, in_flight=20)]

    return asyncio.run(samples())


def held(tokenizer: Any, name: str, limit: int | None) -> None:
    tasks = benchmark(name).tasks(data=DATA, limit=limit)
    right = asked(tokenizer, tasks, {task.id: Random(task.id).choice(task.answers) for task in tasks})
    assert [s.answer for s in right if not s.correct] == [] and all(s.accuracy == 1.0 for s in right)
    assert {(s.calls, s.ending, s.family) for s in right} == {(1, "finished", name)}
    tasks = tasks[:200]
    wrong = asked(tokenizer, tasks, {task.id: WRONG for task in tasks})
    assert [(s.answer, s.gold) for s in wrong if s.accuracy] == []
    others = asked(tokenizer, tasks, {task.id: other.answers[0] for task, other in pairwise([*tasks, tasks[0]])})
    unlike = [s for s in others if s.answer is None or not any(exact(s.answer, gold) for gold in s.gold)]
    fooled = [(s.answer, s.gold) for s in unlike if s.correct]
    assert len(unlike) > len(tasks) / 2 and len(fooled) <= len(tasks) / 25, fooled  # Madrid is half of Real Madrid


@pytest.mark.parametrize("name", FILES)
def test_who_knows_the_golds_is_right_and_who_answers_wrongly_is_not(tokenizer, name):
    held(tokenizer, name, 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_so_for_every_question(tokenizer, name):
    held(tokenizer, name, None)
