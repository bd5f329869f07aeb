"""A scripted agent with realistic times, its trees, and the critical path of each from nominal times.

What the agent writes depends on the request alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from critical_path import CriticalPath, Durations, critical_path

from arpo.chat import Transcript
from arpo.chat.tags import TagFormat
from arpo.core import Place, RolloutTree, Score, StepStats, keyed
from arpo.engines import SamplingParams
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.rollout.agent import Agent
from arpo.rollout.collect import Rollout, collect
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase, ToolResult

SENTENCE = (
    "which river rises in the country whose capital lies on coast and borders two others so I look it up first then add"
)
WORDS = SENTENCE.split()
GOES_ON = (1.0, 3 / 4, 2 / 3, 1 / 2, 0.0)  # by calls made: from one to four calls a trajectory, each number as likely
SIZES = {"max_calls": 4, "turn_tokens": 400, "branch_tokens": 8000, "head": 20, "deadline_s": 600.0}


def tokenizer() -> Any:
    """A small byte-level BPE, made here: the words above are a token each, and so is `<result>`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "<think></think><search></search><answer></answer>"] * 8, trainer)
    bpe.add_tokens([AddedToken("<result>", normalized=False)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    made.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds."""

    token_s: float = 0.02  # one token of one sequence while others are sampled beside it
    prefill_s: float = 1e-4  # one prompt token
    request_s: float = 0.01  # before anything else
    latency_s: float = 0.5  # a call's median
    spread: float = math.log(3.0 / 0.5) / 1.6449  # of its logarithm: the 95th percentile is 3 s

    def until_first(self, context: int) -> float:
        return self.request_s + self.prefill_s * context

    def token(self) -> float:
        return self.token_s

    def call(self, seed: int) -> float:
        """Of the call whose context has this seed."""
        return self.latency_s * math.exp(self.spread * Random(f"{seed}/latency").gauss(0.0, 1.0))


class Search(ToolBase):
    """A tool that takes as long as `times` says and returns a few words."""

    name = "search"
    description = "Finds facts."
    schema: Mapping[str, Any] = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}

    def __init__(self, times: Times) -> None:
        self.times = times

    async def __call__(self, arguments: Any, context: CallContext) -> ToolResult:
        await asyncio.sleep(self.times.call(context.seed))
        return ToolResult(text=" ".join(Random(f"{context.seed}/text").choices(WORDS, k=60)))


def agent(times: Times) -> Agent:
    """The agent that is played. Its turns have a median of 80 tokens and call up to four times."""
    text = tokenizer()
    result = text.convert_tokens_to_ids("<result>")

    def play(prompt: Sequence[int], params: SamplingParams) -> Script:
        draw = Random(f"{params.seed}/says")
        length = min(300, max(24, round(80 * math.exp(draw.gauss(0.0, 0.5)))))
        calls = draw.random() < GOES_ON[list(prompt).count(result)]
        said = " ".join(draw.choices(WORDS, k=length - 16))
        act = f"<search>{draw.randint(0, 9)}</search>" if calls else "<answer>Lima</answer>"
        return Script(said=f"<think>{said}</think>{act}", delay_s=times.until_first(len(prompt)), token_s=times.token())

    return Agent(
        engine=ScriptedEngine(play, text),
        tools=(Search(times),),
        format=partial(TagFormat, text),
        vocab_size=len(text),
    )


def tasks(count: int) -> list[Task]:
    asked = [({"role": "user", "content": f"Question {number}?"},) for number in range(count)]
    return [Task(id=f"task-{number}", messages=messages, answers=("Lima",)) for number, messages in enumerate(asked)]


async def reward(task: Task, said: Transcript) -> Score:
    hit = float(said.answer in task.answers)
    return Score(reward=hit, accuracy=hit)


def call_seed(tree: RolloutTree, place: Place, seed: int) -> int:
    """Of the one call that the turn at `place` made."""
    return keyed(seed, tree.step, tree.task, place, "call").getrandbits(63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growing:
    """How a step's trees grow."""

    num_tasks: int
    config: RolloutConfig
    times: Times


async def grow(who: Agent, growing: Growing, seed: int) -> list[Rollout]:
    """A step's trees, all tasks at once."""
    count = growing.num_tasks
    stats = StepStats(step=1)
    trees = collect(who, tasks(count), reward, growing.config, stats=stats, seed=seed, in_flight=count)
    return [rollout async for rollout in trees]


def path_of(growing: Growing, rollout: Rollout, seed: int) -> CriticalPath:
    """The critical path of a tree, from nominal times."""
    tree, times, head = rollout.grown.tree, growing.times, growing.config.head

    def sampling(place: Place, count: int) -> float:
        written = min(count, len(tree.turns[place].tokens))
        return times.until_first(len(tree.context(place[:-1]))) + times.token() * written

    durations = Durations(
        turn=lambda place: sampling(place, len(tree.turns[place].tokens)),
        head=lambda place: sampling(place, head),
        calls=lambda place: times.call(call_seed(tree, place, seed)),
    )
    return critical_path(rollout.grown.expansion, durations, growing.config.max_calls)
