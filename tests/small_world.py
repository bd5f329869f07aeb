"""An agent of scripted turns and small tools: what it says depends on the request alone, when it says it on a
timing."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from arpo.chat import Transcript
from arpo.chat.tags import TagFormat
from arpo.core import CallStatus, Place, RolloutTree, Score, StepStats
from arpo.core.record import TreeRecord
from arpo.engines import SamplingParams
from arpo.engines.scripted import Play, Script, ScriptedEngine
from arpo.rollout.agent import Agent
from arpo.rollout.collect import Rollout, collect, record_of
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase, ToolResult

ANSWER = "<answer>Lima</answer>"
SEARCH = "<search>capital</search>"
SIZES = {"head": 4, "turn_tokens": 60, "branch_tokens": 2000}


def search(text: str = SEARCH, **values: Any) -> Script:
    return Script(said=f"<think>I look up.</think>{text}", **values)


@dataclass
class Search(ToolBase):
    """A tool of one argument; `latency` gives the seconds of each call."""

    name: str = "search"
    description: str = "Finds facts."
    latency: Callable[[], float] = lambda: 0.0
    reply: Callable[[str], ToolResult | str] = "Peru: {} is Lima.".format
    calls: int = 0

    schema = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}  # noqa: RUF012

    async def __call__(self, arguments: Any, context: CallContext) -> ToolResult:
        self.calls += 1
        await asyncio.sleep(self.latency())
        reply = self.reply(arguments["query"])
        return reply if isinstance(reply, ToolResult) else ToolResult(text=reply)


def unsure(prompt: Sequence[int], params: SamplingParams) -> Script:
    """Calls or answers, in some of a few words, as the request's seed has it."""
    draw = Random(f"{params.seed}/says")
    thought = f"<think>{' '.join(draw.choices(['capital', 'Peru', 'Lima', 'country'], k=draw.randint(0, 6)))}</think>"
    said = draw.choices(
        [SEARCH, f"<search>{draw.randint(0, 9)}</search>", ANSWER, "<answer>2</answer>", "Lima"], [5, 3, 3, 2, 1]
    )[0]
    return Script(said=thought + said)


def results_in(tokenizer: Any, prompt: Sequence[int]) -> int:
    """How many tool results the model has seen."""
    return str(tokenizer.decode(list(prompt))).count("<result>")


def agent(
    tokenizer: Any,
    play: Play,
    *tools: ToolBase,
    delay: Callable[[], tuple[float, float]] | None = None,
    form: Callable[..., Any] = TagFormat,
    **values: Any,
) -> Agent:
    """`values`: other fields of the agent."""
    return Agent(
        engine=ScriptedEngine(play, tokenizer, delay=delay),
        tools=tools or (Search(),),
        format=partial(form, tokenizer),
        vocab_size=len(tokenizer),
        **values,
    )


def task(number: int = 0, **values: Any) -> Task:
    question = f"Which city is the capital of country {number}?"
    return Task(id=f"task-{number}", messages=({"role": "user", "content": question},), answers=("Lima",), **values)


def config(**values: Any) -> RolloutConfig:
    return RolloutConfig(**{"leaves": 4, "roots": 2, "rule": "paper", **SIZES, **values})


async def right(task: Task, said: Transcript) -> Score:
    hit = float(said.answer in task.answers)
    return Score(reward=hit, accuracy=hit)


async def rollouts(
    who: Agent, rules: RolloutConfig, *tasks: Task, reward: Any = right, seed: int = 0, **values: Any
) -> list[Rollout]:
    stats = values.pop("stats", StepStats(step=1))
    values = {"in_flight": 4, **values}
    return [r async for r in collect(who, tasks or (task(),), reward, rules, stats=stats, seed=seed, **values)]


def timeless(rollout: Rollout) -> tuple[RolloutTree, Any, Any]:
    """All that must not depend on timing: the tree without the seconds of its calls, its decisions, its scores."""
    record: TreeRecord = record_of(rollout)
    tree = RolloutTree(record.tree.task, record.tree.step, record.tree.prompt)
    tree.turns, tree.endings = record.tree.turns, record.tree.endings
    for place, seen in record.tree.observations.items():
        tree.observations[place] = replace(seen, outcomes=tuple(replace(o, seconds=0.0) for o in seen.outcomes))
    decisions = {
        place: (made.tip, made.decided.decision, made.decided.granted) for place, made in record.decisions.items()
    }
    return tree, decisions, record.scores


def statuses(rollout: Rollout, place: Place) -> list[CallStatus]:
    return [outcome.status for outcome in rollout.grown.tree.observations[place].outcomes]
