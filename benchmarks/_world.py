"""A scripted agent with realistic times: what it says depends on the request alone, so any scheduler meets the same trees.

Knows times and texts. Refuses to know who schedules.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from arpo.chat import Transcript
from arpo.chat.tags import TagFormat
from arpo.core import Place, RolloutTree, Score, keyed
from arpo.engines import SamplingParams
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase, ToolResult

SENTENCE = "which river rises in the country whose capital lies on coast and borders two others so I look it up first then add"
WORDS = SENTENCE.split()
GOES_ON = (1.0, 3 / 4, 2 / 3, 1 / 2, 0.0)  # by calls made: from one to four calls a trajectory, each number as likely
SIZES = {"max_calls": 4, "turn_tokens": 400, "branch_tokens": 8000, "head": 20, "tool_deadline_s": 600.0}


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
    """Seconds, all of them divided by `speed` where they are waited for."""

    token_s: float = 0.02  # one token of one sequence while others are sampled beside it
    prefill_s: float = 1e-4  # one prompt token
    request_s: float = 0.01  # before anything else
    latency_s: float = 0.5  # a call's median
    spread: float = math.log(3.0 / 0.5) / 1.6449  # of its logarithm: the 95th percentile is 3 s
    speed: float = 1.0

    def until_first(self, context: int) -> float:
        return (self.request_s + self.prefill_s * context) / self.speed

    def token(self) -> float:
        return self.token_s / self.speed

    def call(self, seed: int) -> float:
        """Of the call whose context has this seed."""
        return self.latency_s * math.exp(self.spread * Random(f"{seed}/latency").gauss(0.0, 1.0)) / self.speed


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


def params_of(tree: RolloutTree, place: Place, config: RolloutConfig, seed: int, chat: Any) -> SamplingParams:
    """The request that wrote the turn at `place`."""
    return SamplingParams(
        max_tokens=config.turn_tokens,
        stop=chat.stop,
        stop_tokens=chat.stop_tokens,
        seed=keyed(seed, tree.step, tree.task, place, "sample").getrandbits(63),
    )


def call_seed(tree: RolloutTree, place: Place, seed: int) -> int:
    """Of the one call that the turn at `place` made."""
    return keyed(seed, tree.step, tree.task, place, "call").getrandbits(63)
