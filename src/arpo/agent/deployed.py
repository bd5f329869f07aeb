"""A trained agent that answers: `arpo.Agent`. It has the model, the tools, the prompt and the limits of its run.

Knows conversations. Refuses to know who asks: a program, a terminal, an HTTP client.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Self, cast

from arpo.agent.pick import AgentAnswer, Pick, equality, picked
from arpo.assembly.components import EvalComponents, build_eval_components, build_setting, model_folder
from arpo.assembly.resolve import resolve_for_chat
from arpo.chat.token_text import check_size
from arpo.core.branching import StepStats
from arpo.environments.episodes import Episode, Episodes
from arpo.errors import ConfigError
from arpo.evaluation.judge import Judge
from arpo.event_loop import told
from arpo.recipe.run import RunConfig
from arpo.rollout.agent import EvalAgent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.task_rollout import TaskRollout
from arpo.rollout.watching import RolloutEvent, Watch
from arpo.tasks import Task

Messages = Sequence[Mapping[str, str]]


class ChatSession:
    """One conversation with an agent, which remembers questions and answers. A second question waits for the answer to
    the first."""

    def __init__(self, agent: "DeployedAgent") -> None:
        self.agent = agent
        self.messages: list[Mapping[str, str]] = []
        """Questions and answers so far, as chat messages."""
        self.forgotten = 0
        """Messages that no longer fit `rollout.branch_tokens`, counted from the beginning."""
        self.episode: Episode | None = None
        """Of the agent's environment: it lasts as long as the conversation."""
        self.task = Task(id="chat", messages=(), answers=())
        """As the environment has begun it."""
        self._lock = asyncio.Lock()
        self._episodes: Episodes | None = None

    async def keep(self, rollout: TaskRollout, answer: AgentAnswer) -> None:
        """Go on where `answer` has left the environment, from the next question on."""
        kept = None if answer.ending.aborted else rollout.states.take(answer.leaf)
        if kept is not None:
            await self.end()
            self.task, self.episode, self._episodes = rollout.task, kept, rollout.states.episodes
            self.agent.in_episodes.add(self)

    async def end(self) -> None:
        """Let go of the episode: the next question begins another."""
        episode, self.episode = self.episode, None
        self.agent.in_episodes.discard(self)
        if episode is not None and self._episodes is not None:
            await self._episodes.close(episode)

    async def ask(self, question: str, **how: Any) -> AgentAnswer:
        """The answer to `question`. `how`: see `DeployedAgent.ask`."""
        async with aclosing(self.stream(question, **how)) as events:
            async for event in events:
                if isinstance(event, AgentAnswer):
                    return event
        raise AssertionError("a stream ends with an answer or raises")

    async def stream(self, question: str, **how: Any) -> AsyncGenerator[RolloutEvent | AgentAnswer, None]:
        """What happens while the agent answers, then the answer. Closing the generator stops the agent; a stopped or
        failed answer leaves the conversation as it was."""
        async with self._lock:
            whole = [*self.messages, {"role": "user", "content": question}]
            messages = self.agent.fitting(whole)
            async with aclosing(self.agent.reply_events(messages, session=self, **how)) as events:
                async for event in events:
                    if isinstance(event, AgentAnswer):
                        self.forgotten += len(whole) - len(messages)
                        said = event.rollout.task.messages  # with what an environment began with
                        self.messages = [*said, {"role": "assistant", "content": event.text}]
                    yield event


class DeployedAgent:
    """An agent to ask. `arpo.Agent.load` makes one; close it, or use it as an async context manager.

    async with arpo.Agent.load("runs/quickstart") as agent:
        answer = await agent.ask("Which city is the capital of Peru?")
    """

    def __init__(self, components: EvalComponents, *, label: str = "", notes: Sequence[str] = ()) -> None:
        self.components, self.label, self.notes = components, label, tuple(notes)
        self._judge = Judge(judge) if (judge := components.run.evaluation.judge) else None
        self._asked = 0
        self.in_episodes: set[ChatSession] = set()
        self._session = ChatSession(self)

    @classmethod
    def load(cls, source: str | Path, *, recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """The agent of `source`: a run's folder, one of its checkpoints, an exported model, or a recipe. Any other
        model needs the `recipe` whose tools and prompt it gets. `overrides`: `key=value`, as on the command line.

        Raises ConfigError, CheckpointError.
        """
        resolved = resolve_for_chat(str(source), None if recipe is None else str(recipe), overrides)
        # a conversation grows, and drops its oldest part instead of being too long
        chat = resolved.run.chat.model_copy(update={"prompt_tokens": None})
        run = resolved.run.model_copy(update={"chat": chat})
        setting = build_setting(run)
        components = build_eval_components(run, model_folder(run, resolved.weights), resolved.weights, setting=setting)
        return cls(components, label=resolved.label, notes=setting.notes())

    @property
    def run(self) -> RunConfig:
        return self.components.run

    @property
    def messages(self) -> Sequence[Mapping[str, str]]:
        """The conversation of `ask` and `stream` so far."""
        return tuple(self._session.messages)

    async def ask(
        self,
        question: str,
        *,
        samples: int = 1,
        pick: Pick = "vote",
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> AgentAnswer:
        """The answer to `question`, which continues the conversation of earlier questions (`forget` ends it; `session`
        begins another beside it), and the episode of the agent's environment.

        samples: branches that try to answer; more than one grow as a tree where the recipe's rule branches, else each
        from the prompt. pick: which answer counts; `vote`: the one that most give, equal by the recipe's answer
        measure; `judge`: the same, equal by the model `evaluation.judge`. temperature: the recipe's where it is None;
        0: greedy. seed: of all draws; None: another for every question.

        Raises ConfigError for a question that leaves no room for an answer, and ToolsStoppedError where a provider
        answers nobody. A failed engine or tool is an answer whose `ending` says so.
        """
        how = {"samples": samples, "pick": pick, "temperature": temperature, "top_p": top_p, "seed": seed}
        return await self._session.ask(question, **how)

    def stream(self, question: str, **how: Any) -> AsyncGenerator[RolloutEvent | AgentAnswer, None]:
        """As `ask`, with everything that happens on the way: `TextWritten`, `TurnWritten`, `ResultsRead`, `Branched`
        and `BranchEnded` (arpo.rollout.watching), then the `AgentAnswer`."""
        return self._session.stream(question, **how)

    def session(self) -> ChatSession:
        """Another conversation with the same model. Conversations are independent and may go on at the same time."""
        return ChatSession(self)

    def forget(self) -> None:
        """Begin a new conversation."""
        self._session = ChatSession(self)

    async def reply(
        self,
        messages: Messages,
        *,
        samples: int = 1,
        pick: Pick = "vote",
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        watch: Watch | None = None,
        session: ChatSession | None = None,
    ) -> AgentAnswer:
        """The answer to a whole conversation (its last message is the user's), without memory but for the episode of
        `session`."""
        if samples < 1:
            raise ConfigError("should be at least 1", where="samples", value=samples)
        self.check_size(messages)
        same = equality(self.run, pick, self._judge)
        self._asked += 1
        if seed is None:
            seed = Random(f"{self.run.seed}/chat/{self._asked}").getrandbits(63)
        # the first message names the conversation: an engine with replicas sends what it knows to the same one
        name = hashlib.sha256(str(messages[0]["content"]).encode("utf-8", "replace")).hexdigest()[:12]
        task = Task(id=f"chat-{name}", messages=tuple(dict(message) for message in messages), answers=())
        agent = self.components.agent
        if session is not None and session.episode is not None and agent.environment is not None:
            task = replace(task, tools=session.task.tools)
            agent = cast(EvalAgent, replace(cast(Any, agent), environment=agent.environment.going_on(session.episode)))
        rollout = await agent.rollout(
            task, self._limits(samples, temperature, top_p), stats=StepStats(step="chat"), seed=seed, watch=watch
        )
        try:
            answer = await picked(rollout, same)
            if session is not None:
                await session.keep(rollout, answer)
            return answer
        finally:
            await rollout.states.close()

    def reply_events(self, messages: Messages, **how: Any) -> AsyncGenerator[RolloutEvent | AgentAnswer, None]:
        """As `reply`, with everything that happens on the way, then the answer."""
        return told(lambda tell: self.reply(messages, watch=tell, **how))

    def _limits(self, samples: int, temperature: float | None, top_p: float) -> RolloutConfig:
        config = self.run.rollout.sized(samples)
        changed = config.model_copy(update={} if temperature is None else {"temperature": temperature})
        changed._top_p = top_p
        return changed

    def fitting(self, messages: Messages) -> list[Mapping[str, str]]:
        """The newest of `messages` that leave room for a call, its result and an answer (rollout.branch_tokens holds
        all). Whole pairs of question and answer go, the last question never."""
        rollout, kept = self.run.rollout, list(messages)
        self.check_size(messages[-1:])
        room = rollout.branch_tokens - 2 * rollout.turn_tokens - self.run.chat.result_tokens
        while len(kept) > 2 and self.num_tokens(kept) > room:
            kept = kept[2:]
        return kept

    def check_size(self, messages: Messages) -> None:
        """Raises FormatError for messages that no branch can hold."""
        check_size((str(message["content"]) for message in messages), self.run.rollout.branch_tokens)

    def num_tokens(self, messages: Messages) -> int:
        """Tokens of the prompt that `messages` make."""
        task = Task(id="chat", messages=tuple(dict(message) for message in messages), answers=())
        return self.components.agent.num_prompt_tokens(task)

    async def close(self) -> None:
        for session in list(self.in_episodes):
            await session.end()
        if self._judge is not None:
            await self._judge.close()
        await self.components.agent.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
