"""States of tools, one set a line of the tree: opened at the prompt, forked where a line leaves a trunk.

A *line* is a turn with all the probes that follow it; `(0, 1, 0, 0)` belongs to the line of `(0, 1)`. The state at a
tip is captured before the probe's next call, because siblings may be granted later than that call; no tool is called on
a captured state. What a line asks for, it asks for itself and one thing at a time; different lines never share a state.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast

from arpo.core.place import Place
from arpo.environments import Step
from arpo.environments.episodes import Episode, Episodes
from arpo.errors import ToolError
from arpo.tasks import Task
from arpo.threads import settled
from arpo.tools import StatefulTool, ToolBase

States = Mapping[str, Any]  # by the name of the tool or the environment


class StateHolder(Protocol):
    """What keeps a state in every branch: a stateful tool, or the episodes of an environment."""

    async def open(self, task: Task) -> Any: ...
    async def fork(self, state: Any) -> Any: ...
    async def close(self, state: Any) -> None: ...


def line_of(place: Place) -> Place:
    """The place where the line through `place` starts."""
    while len(place) > 1 and place[-1] == 0:
        place = place[:-1]
    return place


class ToolStates:
    """All states of one tree. Tools without `open` are stateless and cost nothing here.

    Opening, forking and closing a set may take `deadline_s`. What takes longer, or fails with a ToolError, means that
    the infrastructure is down: opening and forking raise ToolError, closing notes it in `lost`. Whatever else a tool
    raises there is a bug and propagates, when the other states are closed.
    """

    def __init__(
        self, tools: Sequence[ToolBase], task: Task, deadline_s: float, episodes: Episodes | None = None
    ) -> None:
        self.tools: dict[str, StateHolder] = {tool.name: tool for tool in tools if isinstance(tool, StatefulTool)}
        self.offered, self.episodes = {tool.name: tool for tool in tools}, episodes
        if episodes is not None:
            self.tools[episodes.name] = episodes
        self.task, self.deadline_s = task, deadline_s
        self.lost: list[str] = []  # what could not be closed, or scored for want of a state, and why
        self._live: dict[Place, States] = {}  # by line
        self._captured: dict[Place, States] = {}  # by tip

    async def at(self, place: Place) -> States:
        """States of the line through `place`; opened or forked when first asked for."""
        line = line_of(place)
        if self.tools and line not in self._live:
            tip = line[:-1]
            trunk = self._captured[tip] if tip else None
            self._live[line] = await self._all(lambda name: self._begin(name, trunk))
        return self._live.get(line, {})

    @property
    def steps(self) -> Mapping[Place, Step]:
        """What an environment answered, by turn."""
        return {} if self.episodes is None else self.episodes.steps

    def holder(self, tool: str) -> str:
        """Under which name the state of a tool is kept: its own, or that of the environment it belongs to."""
        return (self.offered[tool].state_of or tool) if tool in self.offered else tool

    async def final(self, leaf: Place) -> States:
        """States at a leaf, as a reward sees them: of an environment the object itself."""
        states = dict(await self.at(leaf))
        if self.episodes is not None:
            states[self.episodes.name] = await self.episodes.live(states[self.episodes.name])
        return states

    async def capture(self, tip: Place) -> None:
        """Keep the state at `tip` for siblings that may be granted there."""
        if not self.tools:
            return
        trunk = self._live[line_of(tip)]
        self._captured[tip] = await self._all(lambda name: settled(self.tools[name].fork, trunk[name]))

    async def drop(self, tip: Place) -> None:
        """No sibling will start at `tip`: its captured state, if there is one, can go."""
        await self._close([self._captured.pop(tip, {})])

    async def close(self) -> None:
        """Close every state, also where closing one of them fails. Closing twice is fine."""
        states = [*self._live.values(), *self._captured.values()]
        self._live, self._captured = {}, {}
        await self._close(states)
        if self.episodes is not None:
            await self._within(self.episodes.name, self.episodes.end)

    def take(self, leaf: Place) -> Episode | None:
        """The environment's episode at `leaf`, which `close` then leaves open; None where it has none."""
        states = dict(self._live.get(line_of(leaf), {}))
        episode = states.pop(self.episodes.name, None) if self.episodes is not None else None
        self._live[line_of(leaf)] = states
        return cast(Episode | None, episode)

    def _begin(self, name: str, trunk: States | None) -> Awaitable[Any]:
        tool = self.tools[name]
        return settled(tool.open, self.task) if trunk is None else settled(tool.fork, trunk[name])

    async def _all(self, make: Callable[[str], Awaitable[Any]]) -> States:
        """A state of every tool, or none at all."""
        made: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self.deadline_s):
                for name in self.tools:
                    made[name] = await make(name)
        except BaseException as error:
            await self._close([made])
            if isinstance(error, TimeoutError):
                waited = ", ".join(name for name in self.tools if name not in made)
                raise ToolError(f"the state of {waited} was not there after {self.deadline_s:g} s") from error
            raise
        return made

    async def _close(self, states: Sequence[States]) -> None:
        closing = [self._end(name, state) for each in states for name, state in each.items()]
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _end(self, name: str, state: Any) -> None:
        await self._within(name, partial(settled, self.tools[name].close, state))

    async def _within(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self.deadline_s):
                await close()
        except (ToolError, TimeoutError) as error:
            self.lost.append(f"{name} was not closed: {str(error) or f'not done after {self.deadline_s:g} s'}")
