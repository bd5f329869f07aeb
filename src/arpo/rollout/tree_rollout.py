"""Grow one task's tree: the only place where engines and tools meet.

`Expansion` decides what happens; this file makes it happen. Every request and every turn's calls are a task of their
own, so a slow tool holds up nobody else. It knows the limits of a branch. It refuses to know budgets, rules and
rewards.

An infrastructure failure (EngineError, a provider that is down) is an event and is recorded with its reason. Anything
else that an engine, a rule or a tool's state raises is a bug: it stops the tree, cancels what runs, closes every state
and propagates as it is.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from arpo.chat import ChatFormat, ParsedTurn
from arpo.core.branching import StepStats
from arpo.core.expansion import Command, Decided, Event, Expansion, Failed, Returned, RunCalls, SampleTurn, TurnEnded
from arpo.core.place import Place, Step, keyed
from arpo.core.tree import (
    Call,
    CallStatus,
    FinishReason,
    Observation,
    Prompt,
    Role,
    RolloutTree,
    StopReason,
    ToolCallResult,
    Turn,
)
from arpo.engines import Chunk, SamplingParams
from arpo.environments import AgentTurn
from arpo.environments.episodes import EnvironmentSource, Episodes
from arpo.errors import ConfigError, ContextChangedError, EngineError, EnvironmentFailedError, ToolError
from arpo.event_loop import task_group
from arpo.rollout.config import RolloutConfig
from arpo.rollout.states import States, ToolStates
from arpo.rollout.turn_builder import TurnBuilder
from arpo.rollout.watching import (
    Branched,
    BranchEnded,
    ResultsRead,
    RolloutEvent,
    TextWritten,
    TurnText,
    TurnWritten,
    Watch,
)
from arpo.tasks import Task
from arpo.tools import CallContext, Tool, ToolBase, with_defaults
from arpo.tools.cache import ReplayMissError
from arpo.tools.gateway import ToolGateway
from arpo.tools.schemas import checked_schema

if TYPE_CHECKING:
    from arpo.rollout.agent import Agent, EvalAgent

NOT_RUN = "no calls left: this one did not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRollout(ABC):
    """A finished tree with what its rewards, record and metrics need, whoever wrote its turns."""

    task: Task
    expansion: Expansion
    parsed: Mapping[Place, ParsedTurn]  # what every turn says
    states: ToolStates  # final states of tools; closed by whoever scores the tree
    failures: tuple[
        tuple[Place, str], ...
    ]  # of the infrastructure, with reasons, those that a further attempt mended included
    discarded: Mapping[
        Place, tuple[ToolCallResult, ...]
    ]  # by leaf: calls that were made, but whose results the model was never shown
    tool_s: float  # seconds spent in tools, summed over calls
    waited_s: float  # seconds between a tip's head and its decision, summed over decisions that had to wait for others

    @property
    def tree(self) -> RolloutTree:
        return self.expansion.tree

    @property
    def planned_roots(self) -> int:
        """N: what the plan came to (a finished tree has one)."""
        assert self.expansion.planned_roots is not None
        return self.expansion.planned_roots

    @abstractmethod
    def prompt_text(self) -> str: ...

    @abstractmethod
    def turn_text(self, place: Place) -> str:
        """The turn at `place` as people read it."""

    @abstractmethod
    def observation_text(self, place: Place) -> str:
        """What the model read after the turn at `place`."""

    @abstractmethod
    def num_read(self, place: Place) -> int:
        """Tokens before the turn at `place`."""

    @abstractmethod
    def num_written(self, place: Place) -> int:
        """Tokens of the turn at `place`."""

    def money(self, place: Place) -> float:
        """What the turn at `place` cost."""
        return 0.0

    def text(self, leaf: Place) -> str:
        """A branch after its prompt."""
        parts = []
        for depth in range(1, len(leaf) + 1):
            place = leaf[:depth]
            if place in self.tree.turns:
                parts.append(self.turn_text(place))
            if place in self.tree.observations:
                parts.append(self.observation_text(place))
        return "".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRollout(TaskRollout):
    """A tree of tokens, whose text `chat` reads."""

    chat: ChatFormat

    def prompt_text(self) -> str:
        return self.chat.text(self.tree.prompt.tokens)

    def turn_text(self, place: Place) -> str:
        return self.chat.text(self.tree.turns[place].tokens)

    def observation_text(self, place: Place) -> str:
        return self.chat.text(self.tree.observations[place].tokens)

    def num_read(self, place: Place) -> int:
        return len(self.tree.context(place[:-1]))

    def num_written(self, place: Place) -> int:
        return len(self.tree.turns[place].tokens)


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
        roots=config.roots,
        rule=config.branch_rule,
        head=config.head,
        vocab_size=agent.vocab_size,
        stats=stats,
        seed=seed,
        root_cap=config.root_cap,
        retries=config.retries,
        deepest=config.max_calls,
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
        task = await episodes.begin()
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


class RolloutDriver(ABC):
    """Carries out an expansion's commands and feeds it what happened. How a turn is sampled, a subclass knows."""

    group: asyncio.TaskGroup

    def __init__(
        self,
        config: RolloutConfig,
        tool_gateway: ToolGateway,
        states: ToolStates,
        expansion: Expansion,
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.task, self.config, self.tool_gateway = states.task, config, tool_gateway
        self.expansion, self.tree = expansion, expansion.tree
        self.tools, self.states, self.episodes = states.offered, states, states.episodes
        self.parsed: dict[Place, ParsedTurn] = {}
        self.outcomes: dict[Place, dict[int, ToolCallResult]] = {}  # by turn and the call's number
        self.failures: list[tuple[Place, str]] = []
        self.judged_at: dict[Place, float] = {}  # by tip; seconds
        self.tool_s = self.waited_s = 0.0

    @abstractmethod
    async def sample(self, command: SampleTurn) -> None:
        """Sample the turn and feed it, or its failure."""

    @abstractmethod
    def observe(
        self, command: RunCalls, results: Sequence[ToolCallResult], calls_left: int | None, message: str | None
    ) -> Returned:
        """What the model reads of `results`, one a call, and of an environment's message; `calls_left`: see
        `ChatFormat.observe`."""

    @abstractmethod
    def read_text(self, observation: Observation) -> str:
        """What the model reads of an observation."""

    async def carry_out(self) -> None:
        try:
            async with task_group() as self.group:
                self._obey(self.expansion.start())
        except BaseException:
            await self.states.close()
            raise

    def outcome(self) -> dict[str, Any]:
        """The fields of a `TaskRollout`."""
        return {
            "task": self.task,
            "expansion": self.expansion,
            "parsed": self.parsed,
            "states": self.states,
            "failures": tuple(self.failures),
            "discarded": {
                place: tuple(made.values())
                for place, made in self.outcomes.items()
                if made and place not in self.tree.observations
            },
            "tool_s": self.tool_s,
            "waited_s": self.waited_s,
        }

    def feed(self, event: Event) -> None:
        commands = self.expansion.feed(event)
        if self.watch is not None:
            for happened in self._happened(event):
                self.watch(happened)
        self._obey(commands)

    def _happened(self, event: Event) -> Iterator[RolloutEvent]:
        """What `event`, which the expansion has processed, means to whoever watches."""
        why = ""
        match event:
            case TurnEnded(turn):
                place = turn.place
                yield TurnWritten(place, self.parsed[place])
            case Returned(observation, ending):
                place = observation.place
                if ending is None:
                    yield ResultsRead(place, observation.outcomes, self.read_text(observation))
            case Failed(place):
                why = self.failures[-1][1]
            case _:
                return
        if place in self.tree.endings:
            yield BranchEnded(place, self.tree.endings[place], why)

    def fail(self, place: Place, ending: StopReason, reason: object) -> None:
        self.failures.append((place, str(reason)))
        self.feed(Failed(place, ending))

    def _obey(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case SampleTurn() if self.episodes is not None and self.episodes.failed is not None:
                    self.group.create_task(self._not_begun(command, self.episodes.failed))
                case SampleTurn():
                    self.group.create_task(self.sample(command))
                case RunCalls():
                    self.group.create_task(self._run_calls(command))
                case Decided():
                    self._decided(command)

    async def _not_begun(self, command: SampleTurn, error: EnvironmentFailedError) -> None:
        self.fail(command.place, StopReason.ENVIRONMENT_FAILED, error)

    def _decided(self, command: Decided) -> None:
        if command.waited and command.place in self.judged_at:
            self.waited_s += _now() - self.judged_at[command.place]
        if command.granted and self.watch is not None:
            self.watch(Branched(command.place, command.granted))
        if command.granted == 0 and self.states.tools:
            self.group.create_task(self.states.drop(command.place))

    def ending(self, turn: Turn, num_tokens: int, room: int) -> StopReason | None:
        """How the branch ends with `turn`, of so many tokens of the `room` left in its branch; None where its calls are
        to run, or an environment answers it."""
        if turn.finish is FinishReason.LENGTH:
            return StopReason.TURN_LENGTH if num_tokens < room else StopReason.BRANCH_LENGTH
        if not turn.calls and self.episodes is None:
            return StopReason.FINISHED
        if turn.calls and self._calls_left(turn.place) <= 0:
            return StopReason.CALL_LIMIT
        if self.episodes is not None:
            return None
        return StopReason.BRANCH_LENGTH if num_tokens >= room else None  # no result would fit

    def _calls_left(self, place: Place) -> int:
        """Calls that the turn at `place` may still make: the limit less those of the turns before it. A turn without a
        call that an environment answered counts as one."""
        turns = (self.tree.turns[place[:depth]] for depth in range(1, len(place)))
        return self.config.max_calls - sum(max(1, len(turn.calls)) for turn in turns)

    # --- calls

    async def _run_calls(self, command: RunCalls) -> None:
        place, left = command.place, self._calls_left(command.place)
        outcomes = self.outcomes.setdefault(place, {})
        try:
            states = await self.states.at(place)
            if self.episodes is not None:
                await self.episodes.begin_turn(states[self.episodes.name], place)
            await self._call_all(command, left, states, outcomes)
            observed = await self._observed(command, left, states, outcomes)
            if observed.ending is None and self._may_branch(place):
                await self.states.capture(place)
        except ToolError as error:
            self.fail(place, _ending_of(error), error)
            return
        self.feed(observed)

    async def _call_all(
        self, command: RunCalls, left: int, states: States, outcomes: dict[int, ToolCallResult]
    ) -> None:
        """Run the calls that have no outcome yet: all at once, those that share a state in their order.

        Raises ToolError where a provider is down. Outcomes got until then are kept, so that a further attempt repeats
        no call.
        """
        random = keyed(self.expansion.config.seed, self.tree.step, self.task.id, command.place, "call", command.attempt)
        queues: dict[object, list[tuple[int, Call, CallContext]]] = {}
        for number, call in enumerate(command.calls[:left]):
            holder = self.states.holder(call.name)
            state = states.get(holder)
            context = CallContext(
                task=self.task, deadline_s=self.config.deadline_s, seed=random.getrandbits(63), state=state
            )
            if number not in outcomes:
                queues.setdefault(holder if holder in states else number, []).append((number, call, context))

        async def work(queue: list[tuple[int, Call, CallContext]]) -> None:
            for number, call, context in queue:
                outcome = await self.tool_gateway.call(self.tools, call, context)
                self.tool_s += outcome.seconds
                if outcome.status is CallStatus.UNAVAILABLE:
                    down.append(f"{outcome.tool}: {outcome.text}")
                    return
                outcomes[number] = outcome

        down: list[str] = []
        async with task_group() as group:
            for queue in queues.values():
                group.create_task(work(queue))
        if down:
            raise ToolError("; ".join(down))

    async def _observed(
        self, command: RunCalls, left: int, states: States, outcomes: Mapping[int, ToolCallResult]
    ) -> Returned:
        refused = [
            ToolCallResult(tool=call.name, status=CallStatus.REFUSED, text=NOT_RUN)
            for call in command.calls[max(0, left) :]
        ]
        results = [*(outcomes[number] for number in sorted(outcomes)), *refused]
        told = max(0, left - len(command.calls)) if self.config.at_call_limit == "tell" else None
        if self.episodes is None:
            return self.observe(command, results, told, None)
        said = self.parsed[command.place]
        turn = AgentTurn(
            text=said.text, answer=said.answer, calls=command.calls, results=tuple(results), content=said.content
        )
        step = await self.episodes.end_turn(states[self.episodes.name], command.place, turn)
        if step.results is not None:
            texts = iter(step.results)
            results = [replace(result, text=next(texts)) if result.answered else result for result in results]
        observed = self.observe(command, results, told, step.message)
        if step.done:
            return replace(observed, ending=StopReason.FINISHED)
        beyond = left <= 0 or len(command.place) > self.config.max_calls
        return replace(observed, ending=StopReason.CALL_LIMIT) if beyond else observed

    def _may_branch(self, place: Place) -> bool:
        return self.tree.turns[place[:1]].role is not Role.FILL and self.expansion.config.most(len(place)) > 0


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
                        self.judged_at[tip] = _now()
                        self.feed(draft.head(place, self.config.head))
            if draft.finish is None or not draft.tokens:
                raise EngineError("the engine's answer broke off")
        except EngineError as error:
            self.fail(place, StopReason.ENGINE_FAILED, error)
            return
        if unjudged:
            self.judged_at[tip] = _now()
        said = self.parsed[place] = self.chat.parse(draft.tokens)
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
        used = len(self.tree.context(place[:-1])) + len(turn.tokens) + len(tokens)
        full = used >= self.config.branch_tokens
        return Returned(
            Observation(place=place, tokens=tokens, outcomes=seen), StopReason.BRANCH_LENGTH if full else None
        )

    def read_text(self, observation: Observation) -> str:
        return self.chat.text(observation.tokens)


def _ending_of(error: ToolError) -> StopReason:
    if isinstance(error, ContextChangedError):
        return StopReason.CONTEXT_CHANGED
    if isinstance(error, EnvironmentFailedError):
        return StopReason.ENVIRONMENT_FAILED
    return StopReason.REPLAY_MISS if isinstance(error, ReplayMissError) else StopReason.TOOL_FAILED


def _now() -> float:
    return asyncio.get_running_loop().time()
