"""Episodes of an environment: one for each line of a tree, begun once, forked or repeated where the tree branches.

Whatever an environment raises becomes an EnvironmentFailedError here; a ProviderError is retried by the provider that
its tools share. Knows environments and the order of an episode's turns. Refuses to know tokens, trees and rewards.
"""

import asyncio
import copy
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, SupportsFloat

from arpo.core.place import Place, keyed, show
from arpo.core.place import Step as StepName
from arpo.core.tree import CallStatus
from arpo.environments import AgentTurn, Environment, Start, Step
from arpo.errors import ConfigError, EnvironmentFailedError, FormatError, ProviderError, ToolError
from arpo.http.limits import Provider, Tell
from arpo.tasks import Task
from arpo.threads import is_asynchronous, run_off_loop
from arpo.tools import CallContext, ToolBase, ToolResult
from arpo.tools.function import FunctionTool, tool_methods
from arpo.tools.tool_event_loop import ToolEventLoop

MOST_REWARD = 1e12  # of a turn: the sum of any number of them is finite
CANNOT_FORK = (TypeError, NotImplementedError)  # what `copy.deepcopy` raises for what it cannot copy, and what says so


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call that changed an episode, to be repeated."""

    tool: "EnvironmentTool"
    arguments: Mapping[str, Any]
    context: CallContext
    result: str


@dataclass(frozen=True, slots=True)
class PastTurn:
    place: Place
    calls: tuple[MadeCall, ...]
    turn: AgentTurn
    step: Step


@dataclass(eq=False, slots=True)
class Episode:
    """The state of a branch. `environment` None: it is made when it is next needed, from `past`."""

    environment: Environment | None
    past: tuple[PastTurn, ...] = ()
    calls: list[MadeCall] = field(default_factory=list)  # of the turn under way
    busy: str = ""  # what did not return in time: nothing else may use the object
    forking: asyncio.Lock = field(default_factory=asyncio.Lock)


class EnvironmentTool(ToolBase):
    """A tool whose calls work on the episode of their branch: `act(environment, arguments, context)`. An environment
    that learns its tools only when it starts gives such ones in the task that `reset` returns."""

    def __init__(
        self,
        name: str,
        description: str,
        schema: Mapping[str, Any],
        act: Callable[[Any, Mapping[str, Any], CallContext], Any],
        *,
        state_of: str,
        deadline_s: float | None = None,
    ) -> None:
        self.name, self.description, self.schema = name, description, schema
        self.state_of, self.provider, self.deadline_s = state_of, state_of, deadline_s
        self._act = act

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        episode = context.state
        if not isinstance(episode, Episode) or episode.environment is None:
            raise ToolError(f"{self.name} works inside an episode of {self.state_of}")
        if episode.busy:
            raise ToolError(f"{episode.busy} has not returned")
        episode.busy, alone = self.name, replace(context, state=None)
        try:
            result: ToolResult = await self._act(episode.environment, arguments, alone)
        except ProviderError:
            episode.busy = ""
            raise
        except Exception as error:
            episode.busy = ""
            episode.calls.append(MadeCall(self, dict(arguments), alone, repr(error)))
            raise
        episode.busy = ""
        if result.status is not CallStatus.REFUSED:
            episode.calls.append(MadeCall(self, dict(arguments), alone, result.text))
        return result

    async def repeat(self, environment: Environment, made: MadeCall) -> str:
        """The text of a call made once more, in a new episode."""
        try:
            return str((await self._act(environment, made.arguments, made.context)).text)
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001  it may raise as it did before
            return repr(error)


class EnvironmentSource:
    """The environment of a run: makes its episodes, and has the tools of its class. Raises ConfigError for a class
    with tools whose names collide."""

    def __init__(self, made_from: type[Environment], make: Callable[[], Environment]) -> None:
        self.made_from, self.make = made_from, make
        self.name = made_from.name or made_from.__name__.lower()
        self.forks = made_from.forks
        self.loop = ToolEventLoop(self.name)
        self.provider = Provider(self.name, concurrency=made_from.concurrency)
        self.tools: tuple[ToolBase, ...] = tuple(map(self._tool, tool_methods(made_from)))
        self.tell: Tell = lambda text, level: None
        self.episode: Episode | None = None  # where trees begin, which leave it as it is; None: with a `reset`

    def going_on(self, episode: Episode) -> "EnvironmentSource":
        """The same environment in the middle of `episode`: a conversation goes on in it."""
        other = copy.copy(self)
        other.episode = episode
        return other

    def _tool(self, method: FunctionTool) -> EnvironmentTool:
        async def act(environment: Environment, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
            return await method.bound_to(environment, owner=self.name, loop=self.loop)(arguments, context)

        deadline_s = method.deadline_s or self.made_from.deadline_s
        return EnvironmentTool(
            method.name, method.description, method.schema, act, state_of=self.name, deadline_s=deadline_s
        )

    @property
    def rewards(self) -> bool:
        """Whether it rewards turns: it has a `step` of its own."""
        return self.made_from.rewards and self.made_from.step is not Environment.step

    def note(self) -> str:
        """A line for the start of a run."""
        how = {
            "copy": "a branch gets a copy of the episode",
            "replay": "it cannot be copied: a branch repeats the turns of its trunk",
            "never": "it can be neither copied nor repeated: its tasks do not branch",
        }[self.forks]
        tools = ", ".join(tool.name for tool in self.tools) or "none"
        return f"environment {self.name} (tools: {tools}): {how}"

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of an episode: on the environment's own loop where it is asynchronous, else in a thread."""
        if is_asynchronous(function):
            return await self.loop.run(lambda: function(*arguments))
        return await run_off_loop(function, *arguments)


class Episodes:
    """The episodes of one tree, as `arpo.rollout.states` keeps states: `open`, `fork` and `close`.

    `random_at(place)` gives the random numbers of the turn at a place; `()` is the start.
    """

    def __init__(self, source: EnvironmentSource, task: Task, *, seed: int, step: StepName, deadline_s: float) -> None:
        self.source, self.name, self.task = source, source.name, task
        self.deadline_s = source.made_from.deadline_s or deadline_s
        self.key = (seed, step, task.id)
        self.first = source.episode
        self.began = task  # as the first episode begins
        self.failed: EnvironmentFailedError | None = None  # why the task could not be begun
        self.steps: dict[Place, Step] = {}
        self.count = dict.fromkeys(("episodes", "forked", "replayed", "replayed_turns"), 0)

    def random_at(self, place: Place) -> Random:
        seed, step, task = self.key
        return keyed(seed, step, task, place, "environment")

    async def begin(self, check: Callable[[Task], None] = lambda start: None) -> Task:
        """Start the tree's first episode; the task as it starts. Where that fails, the task as it is, with `failed`.

        `check` raises ConfigError or FormatError for a start whose tools or prompt cannot be used: they are the
        environment's, or an outside agent's, and end its trajectories but not the run.
        """
        if self.first is not None:
            return self.task
        try:
            environment, start = await self._new()
            try:
                if start is not self.task:
                    check(start)
            except (ConfigError, FormatError) as error:
                await self.source.run(environment.close)
                raise EnvironmentFailedError(f"{self.name}: what `reset` returned cannot be used: {error}") from error
            self.first, self.began = Episode(environment), start
            return start
        except EnvironmentFailedError as error:
            self.failed = error
            return self.task

    async def open(self, task: Task) -> Episode:
        if self.first is None:
            raise self.failed or EnvironmentFailedError(f"{self.name}: the episode has not begun")
        if self.source.forks != "copy" and self.first.environment is not None:  # no other line can start from it
            environment, self.first.environment = self.first.environment, None
            return Episode(environment, self.first.past)
        return await self.fork(self.first)

    async def fork(self, episode: Episode) -> Episode:
        if self.source.forks == "copy" and episode.environment is not None:
            try:
                async with episode.forking:
                    copied = await self.source.run(episode.environment.fork)
                self.count["forked"] += 1
                return Episode(copied, episode.past)
            except CANNOT_FORK as error:
                self.source.forks = "replay"
                why = f"{type(error).__name__}: {error}"
                self.source.tell(f"{self.source.note()}; its `fork` raises {why}", "warning")
            except Exception as error:
                raise _failed(self.name, "fork", error) from error
        return Episode(None, episode.past)

    async def end(self) -> None:
        """Close the episode that the tree began with, unless others go on from it."""
        if self.first is not None and self.first is not self.source.episode:
            await self.close(self.first)

    async def close(self, episode: Episode) -> None:
        environment, episode.environment = episode.environment, None
        if environment is not None:
            try:
                await self.source.run(environment.close)
            except Exception as error:
                raise _failed(self.name, "close", error) from error

    async def live(self, episode: Episode) -> Environment:
        """The episode's object, made by repeating its past where it has none. Raises EnvironmentFailedError, also where
        the repeated turns come out otherwise."""
        if episode.busy:
            raise EnvironmentFailedError(f"{self.name}: {episode.busy} did not return in time")
        if episode.environment is None:
            environment, start = await self._new()
            episode.environment = environment
            if (begins := _shown(start)) != (first := _shown(self.began)):
                at = next((n for n, (a, b) in enumerate(zip(begins, first, strict=False)) if a != b), 0)
                raise EnvironmentFailedError(
                    f"{self.name}: trajectories of a task begin alike, and this one does not "
                    f"({begins[at:][:80]!r} for {first[at:][:80]!r})"
                )
            self.count["replayed"] += 1
            for past in episode.past:
                self.count["replayed_turns"] += 1
                environment.random = self.random_at(past.place)
                for made in past.calls:
                    text = await self._guarded(made.tool.name, lambda m=made: m.tool.repeat(environment, m))  # type: ignore[misc]
                    self._check_equal(made.tool.name, text, made.result)
                step = await self._step(environment, past.turn)
                self._check_equal(f"the turn at {show(past.place)}", step, past.step)
        return episode.environment

    def _check_equal(self, what: str, now: object, before: object) -> None:
        if now != before:
            raise EnvironmentFailedError(
                f"{self.name}: {what} does not come out the same again ({str(now)[:80]!r} for {str(before)[:80]!r}), "
                "so a branch cannot repeat its trunk: take all randomness from `self.random`, or set forks = 'never'"
            )

    async def begin_turn(self, episode: Episode, place: Place) -> None:
        """Before the calls of the turn at `place`."""
        environment = await self.live(episode)
        environment.random = self.random_at(place)

    async def end_turn(self, episode: Episode, place: Place, turn: AgentTurn) -> Step:
        """What comes of the turn at `place`, whose calls have run."""
        turn = replace(turn, number=len(episode.past))
        step = await self._step(await self.live(episode), turn)
        if not (step.done or turn.calls or step.message is not None or step.context is not None):
            raise EnvironmentFailedError(
                f"{self.name}: after a turn without a call, `step` ends the episode, or has a message or a context"
            )
        episode.past = (*episode.past, PastTurn(place, tuple(episode.calls), turn, step))
        episode.calls = []
        self.steps[place] = step
        return step

    async def _step(self, environment: Environment, turn: AgentTurn) -> Step:
        step = await self._guarded("step", lambda: self.source.run(environment.step, turn))
        if not isinstance(step, Step):
            raise EnvironmentFailedError(f"{self.name}: `step` returns an arpo.Step (got {step!r:.80})")
        if not isinstance(step.reward, SupportsFloat) or not abs(float(step.reward)) <= MOST_REWARD:
            wrong = f"a step's reward is a number from {-MOST_REWARD:g} to {MOST_REWARD:g} (got {step.reward!r:.80})"
            raise EnvironmentFailedError(f"{self.name}: {wrong}")
        return step

    async def _new(self) -> tuple[Environment, Task]:
        """A new episode and the task as it starts."""
        self.count["episodes"] += 1
        environment = await self._guarded("__init__", lambda: self.source.run(self.source.make))
        environment.random = self.random_at(())
        try:
            start = await self._guarded("reset", lambda: self.source.run(environment.reset, self.task))
            return environment, started(self.task, start, self.name)
        except BaseException:
            await self.source.run(environment.close)
            raise

    async def _guarded(self, what: str, run: Callable[[], Any]) -> Any:
        """`run()` within the provider's limits and the deadline."""

        async def once() -> Any:
            async with asyncio.timeout(self.deadline_s):
                return await run()

        try:
            return (await self.source.provider.call(once))[0]
        except (ProviderError, EnvironmentFailedError):
            raise
        except TimeoutError as error:
            raise EnvironmentFailedError(f"{self.name}: {what} took longer than {self.deadline_s:g} s") from error
        except ConfigError:
            raise
        except Exception as error:
            raise _failed(self.name, what, error) from error


def _failed(name: str, what: str, error: Exception) -> EnvironmentFailedError:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    return EnvironmentFailedError(f"{name}: {what} raised {type(error).__name__}: {error}{at}")


def _shown(start: Task) -> str:
    """What an episode starts with, as its agent sees it."""
    tools = [(tool.name, tool.description, tool.schema) for tool in start.tools if isinstance(tool, ToolBase)]
    return f"{[dict(message) for message in start.messages]} {tools}"


def started(task: Task, start: Start, name: str) -> Task:
    """`task` with what `reset` returned. Raises EnvironmentFailedError for what is no start."""
    if start is None:
        return task
    if isinstance(start, Task):
        return start
    if isinstance(start, str):
        return replace(task, messages=({"role": "user", "content": start},))
    messages = [m for m in start if isinstance(m, Mapping) and "content" in m] if isinstance(start, Sequence) else []
    if messages and len(messages) == len(start):
        return replace(task, messages=tuple({"role": "user", **message} for message in messages))
    raise EnvironmentFailedError(f"{name}: `reset` returns a text, messages, a task or None (got {start!r:.80})")
