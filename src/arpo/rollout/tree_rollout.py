"""Grow one task's tree with the agent's engine and tools.

`Expansion` decides what happens; a driver makes it happen. Knows how turns are sampled as tokens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from arpo.chat import ChatFormat, ParsedTurn
from arpo.chat.token_text import check_size
from arpo.core.branching import StepStats
from arpo.core.expansion import Expansion, Returned, RunCalls, SampleTurn, TurnEnded
from arpo.core.place import Place, Step, keyed
from arpo.core.tree import FinishReason, Observation, Prompt, Role, RolloutTree, StopReason, ToolCallResult
from arpo.engines import Chunk, SamplingParams
from arpo.environments.episodes import EnvironmentSource, Episodes
from arpo.errors import ConfigError, ContextChangedError, EngineError, FormatError
from arpo.rollout.config import KEEP, RolloutConfig
from arpo.rollout.contexts import ASK, Contexts, Exchange
from arpo.rollout.driver import RolloutDriver, now
from arpo.rollout.states import ToolStates
from arpo.rollout.task_rollout import TreeRollout
from arpo.rollout.turn_builder import TurnBuilder
from arpo.rollout.watching import TextWritten, TurnText, Watch
from arpo.tasks import Task
from arpo.tools import Tool, ToolBase, with_defaults
from arpo.tools.schemas import checked_schema

LATER = "(follows after your summary)"

if TYPE_CHECKING:
    from arpo.rollout.agent import Agent, EvalAgent


async def rollout_tree(
    agent: Agent, task: Task, config: RolloutConfig, *, stats: StepStats, seed: int, watch: Watch | None = None
) -> TreeRollout:
    """Grow the tree of `task`. Raises ConfigError where its prompt leaves no room for a turn."""
    async with begun(agent, task, config, step=stats.step, seed=seed) as states:
        task, config = states.task, never_branching(config, agent.environment)
        chat, tools = agent.chat(task)
        prompt = chat.render(task, tools)
        check_room(task, len(prompt), config)
    expansion = Expansion(
        RolloutTree(task.id, stats.step, Prompt(tokens=prompt)),
        leaves=config.leaves,
        roots=config.planned_roots(stats.pass_rate),
        rule=config.branch_rule,
        head=config.head,
        vocab_size=agent.vocab_size,
        stats=stats,
        seed=seed,
        root_cap=config.root_cap,
        retries=config.retries,
        deepest=config.max_calls * (2 if config.context.by_policy else 1),
        leftover=config.leftover,
    )
    return await TreeDriver(agent, config, chat, states, expansion, watch).run()


@asynccontextmanager
async def begun(
    agent: EvalAgent, task: Task, config: RolloutConfig, *, step: Step, seed: int
) -> AsyncGenerator[ToolStates, None]:
    """The states of a tree; `task` of them is `task` as the agent's environment starts it. Closes them where the body
    fails."""
    episodes = None
    if agent.environment is not None:
        episodes = Episodes(agent.environment, task, seed=seed, step=step, deadline_s=config.deadline_s)
        task = await episodes.begin(lambda start: check_start(agent, start, config))
    states = ToolStates(tools_for(agent.tools, task), task, config.deadline_s, episodes)
    try:
        yield states
    except BaseException:
        await states.close()
        raise


def never_branching(config: RolloutConfig, environment: EnvironmentSource | None) -> RolloutConfig:
    """`config`, without branches where the state of the environment can be neither copied nor repeated."""
    if environment is None or environment.forks != "never":
        return config
    return config.flat(leaves=config.leaves, temperature=config.temperature, top_p=config.top_p)


def tools_for(tools: tuple[ToolBase, ...], task: Task) -> tuple[ToolBase, ...]:
    """An agent's tools and the task's, which replace those of the same name. Raises ConfigError for two of the task's
    with one name."""
    if not task.tools:
        return tools
    brought = [with_defaults(tool) for tool in cast(Sequence[Tool], task.tools)]
    for tool in brought:
        tool.schema = checked_schema(tool, f"tools of task {task.id}")
    names = [tool.name for tool in brought]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"task {task.id} brings two tools of one name", where="tools", value=twice)
    return tuple({tool.name: tool for tool in (*tools, *brought)}.values())


def check_room(task: Task, num_tokens: int, config: RolloutConfig) -> None:
    """Raises ConfigError where the prompt of `task`, of so many tokens, leaves no room for a turn."""
    if num_tokens >= config.branch_tokens:
        raise ConfigError(
            f"the prompt of task {task.id} has {num_tokens} tokens and leaves no room for a turn",
            where="rollout.branch_tokens",
            value=config.branch_tokens,
            hint="raise rollout.branch_tokens or leave this task out",
        )


def check_start(agent: EvalAgent, start: Task, config: RolloutConfig) -> None:
    """Raises ConfigError or FormatError for a start of an episode that leaves no room for a turn; what is far too long
    is not tokenised."""
    check_size((str(message["content"]) for message in start.messages), config.branch_tokens)
    check_room(start, agent.num_prompt_tokens(start), config)


class TreeDriver(RolloutDriver):
    """Samples tokens from the agent's engine."""

    def __init__(
        self,
        agent: Agent,
        config: RolloutConfig,
        chat: ChatFormat,
        states: ToolStates,
        expansion: Expansion,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(config, agent.tool_gateway, states, expansion, watch)
        self.engine, self.chat = agent.engine, chat
        tools = tuple(states.offered.values())
        self.contexts = Contexts(self.tree, self.parsed, chat, states.task, tools)

    async def run(self) -> TreeRollout:
        await self.carry_out()
        return TreeRollout(**self.outcome(), chat=self.chat)

    async def sample(self, command: SampleTurn) -> None:
        place, tip = command.place, command.place[:-1]
        context = self.tree.context(tip)
        room = self.config.branch_tokens - len(context)
        unjudged = command.role is Role.PROBE and tip not in self.judged_at
        draft, text = TurnBuilder(), TurnText(self.chat)
        try:
            async with aclosing(self._chunks(command, context, room)) as chunks:
                async for chunk in chunks:
                    draft.add(chunk)
                    if self.watch is not None and (new := text.grown(draft.tokens, draft.finish is not None)):
                        self.watch(TextWritten(place, new, command.attempt))
                    if unjudged and len(draft.tokens) >= self.config.head and not draft.finish:
                        unjudged = False
                        self.judged_at[tip] = now()
                        self.feed(draft.head(place, self.config.head))
            if draft.finish is None or not draft.tokens:
                raise EngineError("the engine's answer broke off")
        except EngineError as error:
            self.fail(place, StopReason.ENGINE_FAILED, error)
            return
        if unjudged:
            self.judged_at[tip] = now()
        said = self.chat.parse(draft.tokens)
        if tip in self.asked:
            self.parsed[place] = ParsedTurn(text=said.text)
            self.feed(TurnEnded(draft.turn(place, command.role, ())))
            return
        self.parsed[place] = said
        turn = draft.turn(place, command.role, said.calls if draft.finish is FinishReason.STOP else ())
        self.feed(TurnEnded(turn, self.ending(turn, len(turn.tokens), room)))

    def _chunks(self, command: SampleTurn, context: Sequence[int], room: int) -> AsyncGenerator[Chunk, None]:
        random = keyed(
            self.expansion.config.seed, self.tree.step, self.task.id, command.place, "sample", command.attempt
        )
        params = SamplingParams(
            max_tokens=min(self.config.turn_tokens, room),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            stop=self.chat.stop,
            stop_tokens=self.chat.stop_tokens,
            seed=random.getrandbits(63),
            head=1 if self.watch is not None else self.config.head if command.role is Role.PROBE else 0,
            tree=f"{self.tree.step}/{self.task.id}",
        )
        chunks = self.engine.sample(context, params)
        return cast(AsyncGenerator[Chunk, None], chunks)  # closing it cancels the request

    def observe(
        self, command: RunCalls, results: Sequence[ToolCallResult], calls_left: int | None, message: str | None
    ) -> Returned:
        place, turn = command.place, self.tree.turns[command.place]
        tokens, seen = self.chat.observe(turn, results, calls_left, message)
        self.contexts.exchanges[place] = Exchange(tuple(results), message, calls_left)
        return self._returned(Observation(place=place, tokens=tokens, outcomes=seen))

    def _returned(self, observation: Observation) -> Returned:
        full = self._used(observation) >= self.config.branch_tokens
        return Returned(observation, StopReason.BRANCH_LENGTH if full else None)

    def _used(self, observation: Observation) -> int:
        """Tokens of the context that the next turn reads."""
        if observation.new_context:
            return len(observation.tokens)
        place = observation.place
        return len(self.tree.context(place[:-1])) + len(self.tree.turns[place].tokens) + len(observation.tokens)

    async def rewritten(self, observed: Returned) -> Returned:
        limit, observation = self.config.context_limit, observed.observation
        if self.config.context.use == KEEP or observation.new_context or self._used(observation) < limit:
            return observed
        if self.config.context.by_policy:
            return self._ask(observation)
        try:
            policy, most = self.config.context.policy, self.config.branch_tokens
            tokens = await self.contexts.rewritten(observation.place, policy, limit // 2, most)
        except FormatError:  # longer than a context, or than chat.prompt_tokens
            return Returned(observation, StopReason.BRANCH_LENGTH)
        before = [*self.tree.context(observation.place[:-1]), *self.tree.turns[observation.place].tokens]
        if [*before, *observation.tokens] == list(tokens):
            return observed
        return self._returned(replace(observation, tokens=tokens, new_context=True))

    def _ask(self, observation: Observation) -> Returned:
        """Ask the policy to sum up. Results that leave no room for it come after it."""
        place = observation.place
        exchange = self.contexts.exchanges[place]
        message = "\n\n".join(filter(None, [exchange.message, self.config.context.options.get("ask", ASK)]))
        self.asked.add(place)
        for results in (exchange.results, [replace(result, text=LATER) for result in exchange.results]):
            tokens, _ = self.chat.observe(self.tree.turns[place], results, None, message)
            asked = replace(observation, tokens=tokens)
            if self._used(asked) + self.config.turn_tokens <= self.config.branch_tokens:
                return Returned(asked)
        self.contexts.later.add(place)
        return self._returned(asked)

    def reopened(self, observed: Returned, messages: Sequence[Mapping[str, Any]]) -> Returned:
        place = observed.observation.place
        try:
            check_size((str(message["content"]) for message in messages), self.config.branch_tokens)
            tokens = self.contexts.open(place, messages, self.contexts.exchanges[place].calls_left)
        except (ConfigError, FormatError) as error:
            raise ContextChangedError(f"the agent's next request has another history: {error}") from error
        return self._returned(replace(observed.observation, tokens=tokens, new_context=True))

    def summed_up(self, place: Place) -> Returned:
        summary = self.chat.without_thought(self.parsed[place].text)
        tokens = self.contexts.summed_up(place, summary)
        return self._returned(Observation(place=place, tokens=tokens, outcomes=(), new_context=True))

    def read_text(self, observation: Observation) -> str:
        return self.chat.text(observation.tokens)
