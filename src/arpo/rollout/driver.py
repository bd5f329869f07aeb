"""Carry out an expansion's commands: where engines and tools meet.

Every request and every turn's calls are a task of their own, so a slow tool holds up nobody else. Knows the limits of a
branch. Refuses to know budgets, rules and rewards, which are the expansion's.

An infrastructure failure (EngineError, a provider that is down) is an event and is recorded with its reason. Anything
else that an engine, a rule or a tool's state raises is a bug: it stops the tree, cancels what runs, closes every state
and propagates as it is.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.chat import ParsedTurn
from arpo.core.expansion import Command, Decided, Event, Expansion, Failed, Returned, RunCalls, SampleTurn, TurnEnded
from arpo.core.place import Place, keyed
from arpo.core.tree import Call, CallStatus, FinishReason, Observation, Role, StopReason, ToolCallResult, Turn
from arpo.environments import AgentTurn
from arpo.errors import ContextChangedError, EnvironmentFailedError, ToolError
from arpo.event_loop import task_group
from arpo.rollout.config import RolloutConfig
from arpo.rollout.states import States, ToolStates
from arpo.rollout.watching import Branched, BranchEnded, ResultsRead, RolloutEvent, TurnWritten, Watch
from arpo.tools import CallContext
from arpo.tools.cache import ReplayMissError
from arpo.tools.gateway import ToolGateway

NOT_RUN = "no calls left: this one did not run"


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
        expansion.text_of = lambda place: self.parsed[place].text
        self.tools, self.states, self.episodes = states.offered, states, states.episodes
        self.parsed: dict[Place, ParsedTurn] = {}
        self.outcomes: dict[Place, dict[int, ToolCallResult]] = {}  # by turn and the call's number
        self.asked: set[Place] = set()  # tips after which the policy sums up its context, in a turn that does not act
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

    async def rewritten(self, observed: Returned) -> Returned:
        """`observed`, or the new context that the branch goes on with."""
        return observed

    def reopened(self, observed: Returned, messages: Sequence[Mapping[str, Any]]) -> Returned:
        """The new context of an environment. Raises ContextChangedError where it cannot be had."""
        raise ContextChangedError("a model behind an endpoint reads one context a trajectory")

    def summed_up(self, place: Place) -> Returned:
        """The new context after the turn at `place`, in which the policy summed up the one before."""
        raise NotImplementedError

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
                    results = "\n".join(outcome.text for outcome in observation.outcomes)
                    text = results if observation.new_context else self.read_text(observation)
                    yield ResultsRead(place, observation.outcomes, text)
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
            self.waited_s += now() - self.judged_at[command.place]
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
        return self.config.max_calls - sum(max(1, len(self.tree.turns[at].calls)) for at in self._acting(place[:-1]))

    def _acting(self, place: Place) -> Iterator[Place]:
        """The turns up to the one at `place`, but those that sum up."""
        return (place[:depth] for depth in range(1, len(place) + 1) if place[: depth - 1] not in self.asked)

    # --- calls

    async def _run_calls(self, command: RunCalls) -> None:
        place, left = command.place, self._calls_left(command.place)
        outcomes = self.outcomes.setdefault(place, {})
        try:
            states = await self.states.at(place)
            if place[:-1] in self.asked:
                observed = self.summed_up(place)
            else:
                if self.episodes is not None:
                    await self.episodes.begin_turn(states[self.episodes.name], place)
                await self._call_all(command, left, states, outcomes)
                observed = await self._observed(command, left, states, outcomes)
                if observed.ending in (None, StopReason.BRANCH_LENGTH):
                    observed = await self.rewritten(observed)
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
        if step.context is not None and not step.done:
            observed = self.reopened(observed, step.context)
        if step.done:
            return replace(observed, ending=StopReason.FINISHED)
        beyond = left <= 0 or sum(1 for _ in self._acting(command.place)) > self.config.max_calls
        return replace(observed, ending=StopReason.CALL_LIMIT) if beyond else observed

    def _may_branch(self, place: Place) -> bool:
        return self.tree.turns[place[:1]].role is not Role.FILL and self.expansion.config.most(len(place)) > 0


def _ending_of(error: ToolError) -> StopReason:
    if isinstance(error, ContextChangedError):
        return StopReason.CONTEXT_CHANGED
    if isinstance(error, EnvironmentFailedError):
        return StopReason.ENVIRONMENT_FAILED
    return StopReason.REPLAY_MISS if isinstance(error, ReplayMissError) else StopReason.TOOL_FAILED


def now() -> float:
    """Seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()
