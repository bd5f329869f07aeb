"""Agents answer tasks with tools. Training grows trees with `Agent`; evaluation and chat take any `EvalAgent`."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from arpo.chat import ChatFormat
from arpo.core.branching import StepStats
from arpo.endpoint.client import Spent
from arpo.engines import Chunk, SamplingParams
from arpo.engines.base import EngineBase, EngineWrapper
from arpo.environments.episodes import EnvironmentSource
from arpo.errors import ConfigError, FormatError
from arpo.rollout.config import RolloutConfig
from arpo.rollout.tree_rollout import TaskRollout, TreeRollout, rollout_tree, tools_for
from arpo.tasks import Task
from arpo.tools import Tool, ToolBase
from arpo.tools.gateway import ToolGateway

Hear = Callable[[str, bool], None]
"""Called with the next text of an answer, and whether the agent wrote it or read it."""


class EvalAgent(Protocol):
    """What evaluation and chat need of an agent: `Agent` samples tokens, `arpo.served.agent.ServedAgent` asks an
    endpoint."""

    @property
    def tools(self) -> tuple[ToolBase, ...]: ...

    @property
    def environment(self) -> EnvironmentSource | None: ...

    def num_prompt_tokens(self, task: Task) -> int:
        """Raises FormatError for a prompt longer than chat.prompt_tokens."""
        ...

    async def rollout(self, task: Task, config: RolloutConfig, *, stats: StepStats, seed: int) -> TaskRollout:
        """Answer `task`. Raises ConfigError where its prompt leaves no room for a turn."""
        ...

    def heard_by(self, hear: Hear, task: Task) -> Self:
        """The agent, which calls `hear` with the text of its next answer to `task` (one branch) as it comes."""
        ...

    @property
    def spent(self) -> Spent | None:
        """What its answers cost at an endpoint; None where there is no endpoint."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A policy with its chat format and tools."""

    engine: EngineBase
    tools: tuple[ToolBase, ...]
    format: Callable[[Sequence[Tool]], ChatFormat]  # the chat format for a set of tools
    vocab_size: int
    tool_gateway: ToolGateway = field(default_factory=ToolGateway)  # cache, limits and usage of tool calls
    environment: EnvironmentSource | None = None  # what it acts in, beside its tools

    def chat(self, task: Task) -> tuple[ChatFormat, tuple[ToolBase, ...]]:
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


class HeardEngine(EngineWrapper):
    """Passes on, as text, what is new in each context (tool results) and every chunk that the engine writes."""

    def __init__(self, engine: EngineBase, chat: ChatFormat, hear: Hear) -> None:
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


def check_prompts(agent: EvalAgent, tasks: Iterable[Task], config: RolloutConfig) -> None:
    """Raise ConfigError, naming the first, where prompts are longer than chat.prompt_tokens or leave no room for a turn
    in rollout.branch_tokens. Measured: 0.1 s for 1,000 questions."""
    faults = [fault for task in tasks if (fault := _fault(agent, task, config))]
    if faults:
        more = f" ({len(faults) - 1} more tasks are too long as well)" if len(faults) > 1 else ""
        raise ConfigError(faults[0] + more, where="rollout.branch_tokens", hint="Raise the limit, or leave them out")


def _fault(agent: EvalAgent, task: Task, config: RolloutConfig) -> str:
    """What is wrong with the length of a task's prompt; "" where nothing is."""
    try:
        num_tokens = agent.num_prompt_tokens(task)
    except FormatError as error:  # longer than chat.prompt_tokens
        return str(error)
    if num_tokens < config.branch_tokens:
        return ""
    return (
        f"the prompt of task {task.id} has {num_tokens} tokens and leaves no room for a turn in {config.branch_tokens}"
    )
