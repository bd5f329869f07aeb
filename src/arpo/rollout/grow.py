"""Grow one task's tree: the only place where engines and tools meet.

`Expansion` decides what happens; this file makes it happen. Every line of every tree is a task of its own, so a slow tool holds up
nobody else. It refuses to know budgets and rules.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from time import monotonic

from arpo.chat import ChatFormat
from arpo.core.branching import StepStats
from arpo.core.expansion import Command, Decided, Event, Expansion, Failed, HeadKnown, Returned, RunCalls, Sample, TurnEnded
from arpo.core.place import Place, Step, keyed
from arpo.core.tree import Call, Ending, FinishReason, Observation, Outcome, Prompt, Role, RolloutTree, Status, Turn
from arpo.engines import Chunk, SamplingParams
from arpo.errors import ConfigError, EngineError
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.states import ToolStates
from arpo.tasks import Task
from arpo.tools import CallContext, Tool
from arpo.tools.call import run_call


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """A finished tree with what its rewards, record and metrics need."""

    task: Task
    chat: ChatFormat
    expansion: Expansion
    states: ToolStates  # final states of tools; closed by whoever scores the tree
    tool_s: float  # seconds spent in tools, summed over calls
    waited_s: float  # seconds that decisions waited for others

    @property
    def tree(self) -> RolloutTree:
        return self.expansion.tree

    @property
    def planned_roots(self) -> int:
        """N: what the plan came to (a finished tree has one)."""
        assert self.expansion.planned_roots is not None
        return self.expansion.planned_roots


async def grow(agent: Agent, task: Task, config: RolloutConfig, *, stats: StepStats, seed: int) -> Grown:
    """Grow the tree of `task`. Raises ConfigError where its prompt leaves no room for a turn."""
    chat, tools = agent.chat(task)
    prompt = chat.render(task, tools)
    if len(prompt) >= config.branch_tokens:
        raise ConfigError(
            f"the prompt of task {task.id} has {len(prompt)} tokens and leaves no room for a turn",
            where="rollout.branch_tokens",
            value=config.branch_tokens,
            hint="raise rollout.branch_tokens or drop long tasks with data.max_prompt_tokens",
        )
    tree = RolloutTree(task.id, stats.step, Prompt(tokens=prompt))
    expansion = Expansion(
        tree,
        leaves=config.leaves,
        roots=config.roots,
        rule=config.rule,
        head=config.head,
        vocab_size=agent.vocab_size,
        stats=stats,
        seed=seed,
        root_cap=config.root_cap,
        retries=config.retries,
    )
    return await _Driver(agent, task, config, chat, tools, expansion, seed).run()


class _Driver:
    """Carries out an expansion's commands and feeds it what happened."""

    def __init__(
        self,
        agent: Agent,
        task: Task,
        config: RolloutConfig,
        chat: ChatFormat,
        tools: tuple[Tool, ...],
        expansion: Expansion,
        seed: int,
    ) -> None:
        self.agent, self.task, self.config, self.chat, self.tools = agent, task, config, chat, tools
        self.expansion, self.seed = expansion, seed
        self.tree, self.step = expansion.tree, expansion.tree.step
        self.states = ToolStates(tools, task)
        self.tool_s = self.waited_s = 0.0
        self.returned_at: dict[Place, float] = {}
        self.by_name = {tool.name: tool for tool in tools}
        self.group: asyncio.TaskGroup

    async def run(self) -> Grown:
        try:
            async with asyncio.TaskGroup() as self.group:
                self._obey(self.expansion.start())
        except BaseException:
            await self.states.close()
            raise
        return Grown(
            task=self.task,
            chat=self.chat,
            expansion=self.expansion,
            states=self.states,
            tool_s=self.tool_s,
            waited_s=self.waited_s,
        )

    def _feed(self, event: Event) -> None:
        self._obey(self.expansion.feed(event))

    def _obey(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Sample():
                    self.group.create_task(self._sample(command))
                case RunCalls():
                    self.group.create_task(self._run_calls(command))
                case Decided():
                    self._decided(command)

    def _decided(self, command: Decided) -> None:
        if command.waited:
            self.waited_s += monotonic() - self.returned_at.get(command.place, monotonic())
        if command.granted == 0:
            self.group.create_task(self.states.drop(command.place))

    async def _sample(self, command: Sample) -> None:
        context = self.tree.context(command.place[:-1])
        params = self._params(command, room=self.config.branch_tokens - len(context))
        chunks: list[Chunk] = []
        probing = command.role is Role.PROBE
        try:
            async for chunk in self.agent.engine.sample(context, params):
                chunks.append(chunk)
                if probing and sum(len(c.tokens) for c in chunks) >= self.config.head:
                    probing = False
                    self.returned_at[command.place[:-1]] = monotonic()
                    self._feed(_head(command.place, chunks, self.config.head))
        except EngineError:
            self._feed(Failed(command.place, Ending.ENGINE_FAILED))
            return
        self._feed(self._turn_ended(command, chunks, params.max_tokens))

    def _params(self, command: Sample, room: int) -> SamplingParams:
        random = keyed(self.seed, self.step, self.task.id, command.place, "sample", command.attempt)
        return SamplingParams(
            max_tokens=min(self.config.turn_tokens, room),
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            stop=self.chat.stop,
            stop_tokens=self.chat.stop_tokens,
            seed=random.getrandbits(63),
            head=self.config.head if command.role is Role.PROBE else 0,
        )

    def _turn_ended(self, command: Sample, chunks: list[Chunk], max_tokens: int) -> TurnEnded:
        tokens = array("i", chain.from_iterable(c.tokens for c in chunks))
        finish = chunks[-1].finish or FinishReason.STOP
        calls = self.chat.parse(tokens).calls if finish is FinishReason.STOP else ()
        turn = Turn(
            place=command.place,
            role=command.role,
            tokens=tokens,
            logprobs=array("f", chain.from_iterable(c.logprobs for c in chunks)),
            entropies=array("f", chain.from_iterable(c.entropies for c in chunks)),
            bounds=_bounds(chunks),
            versions=_versions(chunks),
            finish=finish,
            calls=calls,
        )
        return TurnEnded(turn, self._ending(turn, max_tokens))

    def _ending(self, turn: Turn, max_tokens: int) -> Ending | None:
        if turn.finish is FinishReason.LENGTH:
            return Ending.TURN_LENGTH if max_tokens == self.config.turn_tokens else Ending.BRANCH_LENGTH
        if not turn.calls:
            return Ending.FINISHED
        return Ending.CALL_LIMIT if self._calls_left(turn.place) <= 0 else None

    def _calls_left(self, place: Place) -> int:
        """Calls that the turn at `place` may still make: the limit less those of the turns before it."""
        return self.config.max_calls - sum(len(self.tree.turns[place[:depth]].calls) for depth in range(1, len(place)))

    async def _run_calls(self, command: RunCalls) -> None:
        place, left = command.place, self._calls_left(command.place)
        states = await self.states.at(place) if self.states.tools else {}
        seed = keyed(self.seed, self.step, self.task.id, place, "call", command.attempt)
        outcomes = await asyncio.gather(
            *(self._call(call, states, seed.getrandbits(63)) for call in command.calls[:left]),
        )
        over = [
            Outcome(tool=call.name, status=Status.REFUSED, text="no calls left: this one did not run")
            for call in command.calls[left:]
        ]
        self.tool_s += sum(outcome.seconds for outcome in outcomes)
        if any(outcome.status is Status.UNAVAILABLE for outcome in outcomes):
            self._feed(Failed(place, Ending.TOOL_FAILED))
            return
        if self.expansion.rule.most(len(place)):
            await self.states.capture(place)
        self._feed(self._returned(place, [*outcomes, *over], max(0, left - len(command.calls))))

    async def _call(self, call: Call, states: dict[str, object], seed: int) -> Outcome:
        deadline_s = self.config.tool_deadline_s  # a tool's own deadline goes first (run_call)
        context = CallContext(task=self.task, deadline_s=deadline_s, seed=seed, state=states.get(call.name))
        return await run_call(self.tools, call, context)

    def _returned(self, place: Place, outcomes: list[Outcome], left: int) -> Returned:
        told = left if self.config.at_call_limit == "tell" else None
        turn = self.tree.turns[place]
        tokens, seen = self.chat.observe(turn, outcomes, told)
        used = len(self.tree.context(place[:-1])) + len(turn.tokens) + len(tokens)
        full = used >= self.config.branch_tokens
        return Returned(Observation(place=place, tokens=tokens, outcomes=seen), Ending.BRANCH_LENGTH if full else None)


def _head(place: Place, chunks: list[Chunk], length: int) -> HeadKnown:
    entropies = array("f", chain.from_iterable(c.entropies for c in chunks))[:length]
    bounds = _bounds(chunks)
    return HeadKnown(place, entropies, bounds and (bounds[0][:length], bounds[1][:length]))


def _bounds(chunks: list[Chunk]) -> tuple[array[float], array[float]] | None:
    if all(c.bounds is None for c in chunks):
        return None
    pairs = [c.bounds or (c.entropies, c.entropies) for c in chunks]
    low = array("f", chain.from_iterable(p[0] for p in pairs))
    return low, array("f", chain.from_iterable(p[1] for p in pairs))


def _versions(chunks: list[Chunk]) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        if spans and spans[-1][0] == chunk.version:
            spans[-1] = (chunk.version, spans[-1][1] + len(chunk.tokens))
        elif chunk.tokens:
            spans.append((chunk.version, len(chunk.tokens)))
    return tuple(spans)
