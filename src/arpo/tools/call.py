"""The boundary between a run and its tools: whatever a tool does, a call ends in a ToolCallResult within its deadline.

Knows calls, deadlines, statuses and faults. Refuses to know tokens, trees, caches, retries and limits.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.core.tree import Call, CallStatus, ToolCallResult
from arpo.errors import ProviderError, ToolError, nearest
from arpo.secrets import without_secrets
from arpo.threads import WorkClock, settled, work_clock
from arpo.tools import CallContext, Tool, ToolBase, ToolResult, with_defaults
from arpo.tools.function import as_result

MOST_CHARS = 200_000  # of a result that is kept and recorded; the chat format cuts to tokens after that
MOST_ERROR_CHARS = 500
LONGEST_S = 60.0  # the deadline where neither tool nor context sets one

WATCHED_S = 1.0  # between looks at whether the event loop goes on
HELD_S = 1.0  # that it may be late without a word
LATE_S = 0.1  # after the deadline, within which an answer counts

_abandoned: set["asyncio.Task[Any]"] = set()  # calls that ignore their cancellation, referenced until they end


async def run_call(tools: Iterable[Tool] | Mapping[str, Tool], call: Call, context: CallContext) -> ToolCallResult:
    """Run one call. Returns by the deadline, and never raises for what the model, the tool or its provider does wrong.
    It neither caches, limits nor retries: `arpo.tools.gateway` does, around `admitted` and `attempt`.
    """
    offered = tools.values() if isinstance(tools, Mapping) else tools
    tool = admitted({tool.name: with_defaults(tool) for tool in offered}, call)
    if isinstance(tool, ToolCallResult):
        return tool
    try:
        return (await attempt(tool, call.arguments, context))[0]
    except ProviderError as error:
        return unavailable(tool, error)


def admitted(tools: Mapping[str, ToolBase], call: Call) -> ToolBase | ToolCallResult:
    """The tool that `call` names, or a refusal for the model to read."""
    if call.error:
        return _refused(call.name, call.error)
    tool = tools.get(call.name)
    if tool is None:
        hint = f": {nearest(call.name, tools)}" if tools else ""
        return _refused(call.name, f"there is no tool {call.name!r}{hint}")
    if missing := [name for name in tool.schema.get("required", ()) if name not in call.arguments]:
        return _refused(tool.name, f"{tool.name} needs {_listed(missing)}")
    return tool


async def attempt(
    tool: ToolBase, arguments: Mapping[str, Any], context: CallContext, tell: Callable[[str], None] | None = None
) -> tuple[ToolCallResult, bool]:
    """Run the tool once. Returns the result, and whether it is empty (`ToolResult.empty`). `tell` hears of a call that
    held the interpreter, so that nothing else in this process went on.

    The deadline is the tool's `deadline_s`, else the context's. For a stateful tool `context.state` is its state in
    this branch. No deadline stops an asynchronous `__call__` that blocks the event loop; functions run in threads or on
    loops of their own. Raises only ProviderError.
    """
    deadline_s = tool.deadline_s or context.deadline_s or LONGEST_S
    start = time.perf_counter()
    clock = work_clock.set(WorkClock())
    try:
        result, fault = await _within(tool, arguments, replace(context, deadline_s=deadline_s), tell)
    finally:
        work_clock.reset(clock)
    text = result.text.encode("utf-8", "replace").decode()
    if fault:
        text = without_secrets(text)
    cut = len(text) > MOST_CHARS
    outcome = ToolCallResult(
        tool=tool.name,
        status=result.status,
        text=text[:MOST_CHARS] + "…[cut]" if cut else text,
        seconds=time.perf_counter() - start,
        cut=cut,
        cached=result.cached,
        fault=fault,
        cost=result.cost,
    )
    return outcome, result.empty


def unavailable(tool: Tool, error: ProviderError) -> ToolCallResult:
    """The result of a call whose provider failed. The model never reads it."""
    return ToolCallResult(
        tool=tool.name, status=CallStatus.UNAVAILABLE, text=without_secrets(_short(str(error))), fault="provider"
    )


async def _within(
    tool: Tool, arguments: Mapping[str, Any], context: CallContext, tell: Callable[[str], None] | None
) -> tuple[ToolResult, str]:
    task = asyncio.create_task(_guarded(tool, arguments, context))
    end, held_s = time.monotonic() + context.deadline_s, 0.0
    try:
        while not task.done() and (left := end - time.monotonic()) > 0:
            woken = time.monotonic() + min(left, WATCHED_S)
            await asyncio.wait({task}, timeout=min(left, WATCHED_S))
            held_s = max(held_s, time.monotonic() - woken)  # the loop came late: something held the interpreter
        if held_s >= HELD_S:  # whoever did has just ended, and its thread may say so in a moment
            await asyncio.wait({task}, timeout=WATCHED_S)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if task.done() and not task.cancelled():
        work = work_clock.get()
        if tell is not None and held_s >= HELD_S and work.cpu_s >= held_s / 8:
            held = f"{tool.name} held the interpreter for {held_s:.1f} s, so that nothing else went on"
            tell(f"{held}: `@arpo.tool(process=True)` runs such a function in a process of its own")
        if (took_s := work.ended - work.began) > context.deadline_s + LATE_S:
            text = f"{tool.name} took {took_s:.1f} s, longer than {context.deadline_s:g} s"
            return ToolResult(text=text, status=CallStatus.TIMEOUT), "deadline"
        return task.result()
    _abandon(task)  # not awaited: a tool may ignore being cancelled
    if task.done():
        return ToolResult(text=f"{tool.name} cancelled itself", status=CallStatus.ERROR), "raised CancelledError"
    late = f"{tool.name} took longer than {context.deadline_s:g} s and was stopped"
    return ToolResult(text=late, status=CallStatus.TIMEOUT), "deadline"


async def _guarded(tool: Tool, arguments: Mapping[str, Any], context: CallContext) -> tuple[ToolResult, str]:
    """The result and its fault, "" where it is no failure."""
    try:
        result = await settled(tool, arguments, context)
        result = _sound(result if isinstance(result, ToolResult) else as_result(result))
        return result, "" if result.status in (CallStatus.OK, CallStatus.REFUSED) else "reported"
    except ProviderError:
        raise
    except ToolError as error:
        return ToolResult(text=_short(str(error)), status=CallStatus.ERROR), "told"
    except (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):  # the call is being ended from outside
        raise
    except BaseException as error:  # noqa: BLE001  the boundary around foreign code; panics of Rust are no Exception
        kind = type(error).__name__
        return ToolResult(text=_short(f"{kind}: {error}"), status=CallStatus.ERROR), f"raised {kind}"


def _sound(result: ToolResult) -> ToolResult:
    """`result` with fields of the right types. Raises TypeError or ValueError for a wrong status or cost, which are
    counted."""
    cost = float(result.cost)
    if not 0 <= cost < math.inf:
        raise ValueError(f"ToolResult.cost is {result.cost!r}")
    return replace(result, text=str(result.text), status=CallStatus(result.status), cost=cost)


def _abandon(task: "asyncio.Task[Any]") -> None:
    if task.done():
        return
    _abandoned.add(task)
    task.add_done_callback(_forget)
    task.cancel()


def _forget(task: "asyncio.Task[Any]") -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it


def _refused(name: str, why: str) -> ToolCallResult:
    return ToolCallResult(tool=name, status=CallStatus.REFUSED, text=_short(why))


def _short(text: str) -> str:
    return text if len(text) <= MOST_ERROR_CHARS else text[: MOST_ERROR_CHARS - 1] + "…"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"{name!r}" for name in names)
