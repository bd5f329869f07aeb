"""Agents: who answers tasks, with tools. Training grows trees with `Agent`; evaluation and chat ask any `EvalAgent`."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, cast

from arpo.chat import ChatFormat
from arpo.core.branching import StepStats
from arpo.endpoint.client import Spent
from arpo.engines import Chunk, Engine, SamplingParams
from arpo.engines.wrapper import EngineWrapper
from arpo.rollout.config import RolloutConfig
from arpo.rollout.tree_rollout import TaskRollout, TreeRollout, rollout_tree
from arpo.tasks import Task
from arpo.tools import Tool
from arpo.tools.gateway import ToolGateway

Hear = Callable[[str, bool], None]  # the next text of an answer, and whether the agent wrote it or read it


class EvalAgent(Protocol):
    """What evaluation and chat need of an agent: `Agent` samples tokens, `arpo.served.agent.ServedAgent` asks an endpoint."""

    @property
    def tools(self) -> tuple[Tool, ...]: ...

    def num_prompt_tokens(self, task: Task) -> int:
        """Raises FormatError for a prompt longer than chat.prompt_tokens."""
        ...

    async def rollout(self, task: Task, config: RolloutConfig, *, stats: StepStats, seed: int) -> TaskRollout:
        """Answer `task`. Raises ConfigError where its prompt leaves no room for a turn."""
        ...

    def heard_by(self, hear: Hear, task: Task) -> Self:
        """The agent, of whose next answer to `task` (one branch) `hear` is given the text as it comes."""
        ...

    @property
    def spent(self) -> Spent | None:
        """What its answers came to at an endpoint; None: there is none."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A policy with its chat format and tools."""

    engine: Engine
    tools: tuple[Tool, ...]
    format: Callable[[Sequence[Tool]], ChatFormat]  # the chat format for a set of tools
    vocab_size: int
    tool_gateway: ToolGateway = field(default_factory=ToolGateway)  # what stands around calls: cache, limits, accounts

    def chat(self, task: Task) -> tuple[ChatFormat, tuple[Tool, ...]]:
        """The chat format and tools for `task`."""
        tools = tools_for(self.tools, task)
        return self.format(tools), tools

    def num_prompt_tokens(self, task: Task) -> int:
        chat, tools = self.chat(task)
        return len(chat.render(task, tools))

    async def rollout(self, task: Task, config: RolloutConfig, *, stats: StepStats, seed: int) -> TreeRollout:
        return await rollout_tree(self, task, config, stats=stats, seed=seed)

    def heard_by(self, hear: Hear, task: Task) -> "Agent":
        chat, _ = self.chat(task)
        return replace(self, engine=HeardEngine(self.engine, chat, hear))

    @property
    def spent(self) -> None:
        return None

    async def close(self) -> None:
        await self.engine.close()


def tools_for(tools: tuple[Tool, ...], task: Task) -> tuple[Tool, ...]:
    """An agent's tools and what `task` brings (of two with one name, the task's)."""
    if not task.tools:
        return tools
    return tuple({tool.name: tool for tool in (*tools, *cast(Sequence[Tool], task.tools))}.values())


class HeardEngine(EngineWrapper):
    """Hands out what is new in each context (tool results), and every chunk that the engine writes."""

    def __init__(self, engine: Engine, chat: ChatFormat, hear: Hear) -> None:
        super().__init__(engine)
        self.chat, self.hear = chat, hear
        self.known = 0  # tokens handed out so far

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        if self.known:
            self.hear(self.chat.text(prompt[self.known :]), False)
        self.known = len(prompt)
        tokens: list[int] = []
        heard = ""
        async for chunk in self.engine.sample(prompt, replace(params, head=1)):
            tokens.extend(chunk.tokens)
            text = self.chat.text(tokens)  # of the whole turn: a piece of it may begin inside a character
            if chunk.finish is None:
                text = text.rstrip("\ufffd")
            text = self._up_to_its_end(text)
            self.hear(text[len(heard) :], True)
            heard = text
            self.known += len(chunk.tokens)
            yield chunk

    def _up_to_its_end(self, text: str) -> str:
        """`text` without what the last token of a stop string brought along (`</answer><` where one token is `><`)."""
        ends = [at + len(stop) for stop in self.chat.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text
