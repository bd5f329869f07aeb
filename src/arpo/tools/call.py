"""The one boundary between a run and its tools: whatever a tool does, a call comes to an Outcome, within its deadline.

Knows calls, deadlines and statuses. Refuses to know tokens, trees, retries and limits on the number of calls.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.core.tree import Call, Outcome, Status
from arpo.errors import ToolError, nearest
from arpo.tools import CallContext, Tool, ToolResult
from arpo.tools.function import as_result

MOST_CHARS = 200_000  # of a result that is kept and recorded; the chat format cuts to tokens after that
MOST_ERROR_CHARS = 500
LONGEST_S = 60.0  # where neither tool nor context sets a deadline: none at all is not offered

_abandoned: set["asyncio.Task[Any]"] = set()  # calls past their deadline that ignore being cancelled: kept until they end


async def run_call(tools: Iterable[Tool] | Mapping[str, Tool], call: Call, context: CallContext) -> Outcome:
    """Run one call. Never raises for what the model or the tool does wrong, and returns at the deadline at the latest.

    The deadline is the tool's own `deadline_s` where it has one, else the context's. For a stateful tool `context.state` is
    the state of that tool in this branch. An asynchronous tool that blocks the event loop is beyond reach.
    """
    offered = tools if isinstance(tools, Mapping) else {tool.name: tool for tool in tools}
    if call.error:
        return _refused(call.name, call.error)
    if call.name not in offered:
        hint = f": {nearest(call.name, offered)}" if offered else ""
        return _refused(call.name, f"there is no tool {call.name!r}{hint}")
    tool = offered[call.name]
    if missing := [name for name in tool.schema.get("required", ()) if name not in call.arguments]:
        return _refused(tool.name, f"{tool.name} needs {_listed(missing)}")
    deadline_s = getattr(tool, "deadline_s", None) or context.deadline_s or LONGEST_S
    start = time.perf_counter()
    result = await _within(tool, call.arguments, replace(context, deadline_s=deadline_s))
    text = result.text.encode("utf-8", "replace").decode()
    cut = len(text) > MOST_CHARS
    return Outcome(
        tool=tool.name,
        status=result.status,
        text=text[:MOST_CHARS] + "…[cut]" if cut else text,
        seconds=time.perf_counter() - start,
        cut=cut,
        cached=result.cached,
    )


async def _within(tool: Tool, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
    task = asyncio.create_task(_guarded(tool, arguments, context))
    try:
        done, _ = await asyncio.wait({task}, timeout=context.deadline_s)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if done and not task.cancelled():
        return task.result()
    _abandon(task)  # not awaited: a tool may ignore being cancelled
    if done:
        return ToolResult(text=f"{tool.name} cancelled itself", status=Status.ERROR)
    return ToolResult(text=f"{tool.name} took longer than {context.deadline_s:g} s and was stopped", status=Status.TIMEOUT)


async def _guarded(tool: Tool, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
    try:
        result = await tool(arguments, context)
        result = result if isinstance(result, ToolResult) else as_result(result)
        return result if isinstance(result.text, str) else replace(result, text=str(result.text))
    except ToolError as error:
        return ToolResult(text=_short(str(error)), status=Status.ERROR)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the boundary around foreign code: what it raises is the model's to read
        return ToolResult(text=_short(f"{type(error).__name__}: {error}"), status=Status.ERROR)


def _abandon(task: "asyncio.Task[Any]") -> None:
    if task.done():
        return
    _abandoned.add(task)
    task.add_done_callback(_forget)
    task.cancel()


def _forget(task: "asyncio.Task[Any]") -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, so that the loop does not report it


def _refused(name: str, why: str) -> Outcome:
    return Outcome(tool=name, status=Status.REFUSED, text=_short(why))


def _short(text: str) -> str:
    return text if len(text) <= MOST_ERROR_CHARS else text[: MOST_ERROR_CHARS - 1] + "…"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"{name!r}" for name in names)
