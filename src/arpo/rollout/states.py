"""States of tools, one a line of the tree: opened at a root's first call, forked where a branch leaves the trunk.

A *line* is a turn with all the probes that follow it; `(0, 1, 0, 0)` belongs to the line of `(0, 1)`. The state at a tip is captured
before the probe's next call, because siblings may be granted later than that call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from arpo.core.place import Place
from arpo.tasks import Task
from arpo.tools import Tool


def line_of(place: Place) -> Place:
    """The place where the line through `place` starts."""
    while len(place) > 1 and place[-1] == 0:
        place = place[:-1]
    return place


class ToolStates:
    """All states of one tree. Tools without `open` are stateless and cost nothing here."""

    def __init__(self, tools: Sequence[Tool], task: Task) -> None:
        self.tools = {tool.name: tool for tool in tools if hasattr(tool, "open")}
        self.task = task
        self._live: dict[Place, dict[str, Any]] = {}  # by line
        self._captured: dict[Place, dict[str, Any]] = {}  # by tip

    async def at(self, place: Place) -> Mapping[str, Any]:
        """States of the line through `place`, by tool name; opened or forked when first asked for."""
        line = line_of(place)
        if line not in self._live:
            if len(line) == 1:
                self._live[line] = {name: await tool.open(self.task) for name, tool in self.tools.items()}  # type: ignore[attr-defined]
            else:
                self._live[line] = await self._fork(self._captured[line[:-1]])
        return self._live[line]

    async def capture(self, tip: Place) -> None:
        """Keep the state at `tip` for siblings that may be granted there."""
        if self.tools:
            self._captured[tip] = await self._fork(self._live[line_of(tip)])

    async def drop(self, tip: Place) -> None:
        """No sibling will start at `tip`."""
        await self._close(self._captured.pop(tip, {}))

    async def close(self) -> None:
        for states in (*self._live.values(), *self._captured.values()):
            await self._close(states)
        self._live, self._captured = {}, {}

    async def _fork(self, states: Mapping[str, Any]) -> dict[str, Any]:
        return {name: await self.tools[name].fork(state) for name, state in states.items()}  # type: ignore[attr-defined]

    async def _close(self, states: Mapping[str, Any]) -> None:
        for name, state in states.items():
            await self.tools[name].close(state)  # type: ignore[attr-defined]
