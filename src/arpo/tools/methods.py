"""A class whose methods are tools: several tools over one object, which is made here and shared by all branches of a run.

Plain methods run in the object's own thread, in which it is made too: a connection of sqlite3 works, and nothing needs a lock.
`async def` methods share one event loop instead. A class has the one or the other, since two threads would meet in the object.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from arpo.errors import ConfigError
from arpo.tools.function import FunctionTool
from arpo.tools.own_thread import OwnThread
from arpo.tools.tool_event_loop import ToolEventLoop


def has_tool_methods(candidate: Any) -> bool:
    """True for a class with at least one method that is decorated by `@arpo.tool`."""
    return inspect.isclass(candidate) and bool(_methods(candidate))


def tools_of(made_from: type, options: Mapping[str, Any]) -> list[FunctionTool]:
    """The tools of one `made_from(**options)`, in the order in which the class defines them. Raises ConfigError for a class with
    methods of both kinds, and what the class itself raises."""
    methods, name = _methods(made_from), made_from.__name__
    if len({method.is_async for method in methods}) > 1:
        raise ConfigError(
            "some of its tools are `async def` and some are not, so two threads would share the object",
            where="tools",
            value=name,
            hint="Make them all one kind",
        )
    if methods[0].is_async:
        made, loop = made_from(**options), ToolEventLoop(name)
        return [method.bound_to(made, owner=name, loop=loop) for method in methods]
    thread = OwnThread(name)
    made = thread.make(lambda: made_from(**options))
    return [method.bound_to(made, owner=name, thread=thread) for method in methods]


def _methods(owner: type) -> list[FunctionTool]:
    named: dict[str, Any] = {}
    for each in reversed(owner.__mro__):
        named.update(vars(each))
    return [value for value in named.values() if isinstance(value, FunctionTool) and value.is_method]
