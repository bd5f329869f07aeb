"""Whatever a tool does, a call comes to an outcome, within its deadline."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Literal

import pytest

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError, ToolError
from arpo.tasks import Task
from arpo.tools import CallContext, ToolResult
from arpo.tools.call import MOST_CHARS, run_call
from arpo.tools.function import tool

CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)), deadline_s=5.0, seed=7
)


@tool
def population(country: str, year: int = 2020, unit: Literal["people", "millions"] = "people") -> dict[str, object]:
    """Population of a country.

    More words about it.

    Args:
        country: English name,
            as the UN writes it.
        year (int): Calendar year.

    Returns:
        A record.
    """
    return {"country": country, "year": year, "unit": unit}


async def outcome(tools, name, context=CONTEXT, **arguments):
    return await run_call(tools, Call(name=name, arguments=arguments), context)


def test_a_function_that_cannot_be_a_tool_is_named_by_file_and_line():
    def silent(item: str) -> str:
        return item

    line = silent.__code__.co_firstlineno
    with pytest.raises(ConfigError, match=rf"test_call_boundary\.py, line {line}: .*no docstring.*'silent'"):
        tool(silent)
    with pytest.raises(ConfigError, match=r"^tools: .*'made'"):
        tool(name="made")(eval("lambda made: made"))


def test_schema_comes_from_types_and_docstring():
    assert population.name == "population" and population.description == "Population of a country. More words about it."
    properties = population.schema["properties"]
    assert properties["country"] == {"type": "string", "description": "English name, as the UN writes it."}
    assert properties["year"] == {"type": "integer", "default": 2020, "description": "Calendar year."}
    assert properties["unit"]["enum"] == ["people", "millions"] and population.schema["required"] == ["country"]


def test_sphinx_docstrings_and_awkward_names_work():
    @tool(name="look_up", deadline_s=2.0)
    def lookup(schema: str, copy: int = 1) -> str:
        """Looks up.

        :param schema: which one
        :param int copy: how many
        :return: text
        """
        return schema * copy

    assert lookup.schema["properties"]["schema"]["description"] == "which one"
    assert lookup.name == "look_up" and lookup.deadline_s == 2.0
    assert asyncio.run(outcome([lookup], "look_up", schema="a", copy=2)).text == "aa"


def test_functions_that_cannot_be_tools_are_refused():
    def mute(x: str) -> str:
        return x

    def untyped(x) -> str:
        """Does."""

    def variadic(*x: str) -> str:
        """Does."""

    def piecemeal(x: str) -> Iterator[str]:
        """Does."""
        yield x

    for function in (mute, untyped, variadic, piecemeal):
        with pytest.raises(ConfigError, match=function.__name__):
            tool(function)


async def test_a_call_that_works():
    done = await outcome([population], "population", country="Peru", year="2021")
    assert done.status is CallStatus.OK and json.loads(done.text) == {"country": "Peru", "year": 2021, "unit": "people"}
    assert 0 < done.seconds < 5


@pytest.mark.parametrize(
    "call, word",
    [
        (Call(name="populaton"), "population"),
        (Call(name="population"), "'country'"),
        (Call(name="population", arguments={"country": "Peru", "year": "soon"}), "year"),
        (Call(name="population", arguments={"country": "Peru", "colour": 1}), "colour"),
        (Call(name="population", error="not JSON"), "not JSON"),
        (Call(name="", error=""), "no tool"),
    ],
)
async def test_what_never_ran_is_refused_and_says_why(call, word):
    done = await run_call([population], call, CONTEXT)
    assert done.status is CallStatus.REFUSED and word in done.text and not done.ran


async def test_without_tools_a_call_is_refused():
    assert (await run_call([], Call(name="x"), CONTEXT)).status is CallStatus.REFUSED


async def test_exceptions_are_errors_that_the_model_can_read():
    @tool
    def breaks(how: str) -> str:
        """Breaks."""
        if how == "exit":
            raise SystemExit(3)
        raise (ToolError if how == "own" else KeyError)("no such place" + "!" * 5000)

    own, key, leaves = [await outcome([breaks], "breaks", how=how) for how in ("own", "key", "exit")]
    assert own.status is key.status is leaves.status is CallStatus.ERROR
    assert own.text.startswith("no such place") and key.text.startswith("KeyError: ") and len(key.text) <= 500
    assert "SystemExit" in leaves.text


def test_defect_7_the_deadline_fires_for_a_hanging_sync_tool_and_the_run_can_end():
    """The released code's 120 s limit can never fire. Here it does, and neither loop nor process waits for the hanging
    thread."""

    let_go, ended = threading.Event(), []

    @tool
    def hangs(x: str) -> str:
        """Hangs."""
        ended.append(let_go.wait(60))
        return x

    done = asyncio.run(outcome([hangs], "hangs", CallContext(task=CONTEXT.task, deadline_s=0.2, seed=0), x=""))
    assert done.status is CallStatus.TIMEOUT and not ended, "the loop ended while the thread still hung"
    let_go.set()


async def test_defect_7_the_deadline_fires_for_a_tool_that_ignores_cancellation():
    let_go, ended = threading.Event(), threading.Event()

    @tool(deadline_s=0.1)
    async def stubborn(x: str) -> str:
        """Ignores everybody."""
        for _ in range(3000):
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue
            if let_go.is_set():
                break
        ended.set()
        return x

    done = await outcome([stubborn], "stubborn", x="")
    assert done.status is CallStatus.TIMEOUT and not ended.is_set(), "it came while the tool still went on"
    let_go.set()
    assert await asyncio.to_thread(ended.wait, 60)


async def test_defect_7_an_empty_output_is_a_result_and_runs_once():
    runs = []

    @tool
    def quiet(x: str) -> str:
        """Says nothing."""
        runs.append(x)
        return ""

    done = await outcome([quiet], "quiet", x="a")
    assert done.status is CallStatus.OK and done.text == "" and runs == ["a"]


async def test_without_any_deadline_there_is_one_all_the_same(monkeypatch):
    @tool
    async def waits(x: str) -> str:
        """Waits."""
        await asyncio.sleep(60)
        return x

    monkeypatch.setattr("arpo.tools.call.LONGEST_S", 0.1)
    context = CallContext(task=CONTEXT.task, deadline_s=None, seed=0)
    assert (await outcome([waits], "waits", context, x="")).status is CallStatus.TIMEOUT


async def test_a_slow_tool_holds_up_nobody():
    together = threading.Barrier(20)

    @tool(deadline_s=60)
    def slow(x: str) -> str:
        """Waits until all twenty are here."""
        together.wait(30)
        return x

    done = await asyncio.gather(*(outcome([slow], "slow", x=str(n)) for n in range(20)))
    assert [(one.status, one.text) for one in done] == [(CallStatus.OK, str(n)) for n in range(20)]


async def test_huge_and_broken_outputs_are_tamed():
    @tool
    def floods(x: str) -> str:
        """Floods."""
        return "\ud800" + x * 10_000_000

    done = await outcome([floods], "floods", x="a")
    assert done.cut and len(done.text) < MOST_CHARS + 10 and done.text.endswith("…[cut]")
    done.text.encode()


async def test_context_and_state_reach_the_tool_and_stay_out_of_the_schema():
    @tool
    async def counts(word: str, context: CallContext) -> ToolResult:
        """Counts."""
        context.state["seen"] += 1
        return ToolResult(text=f"{word} {context.seed} {context.state['seen']}", cached=True)

    assert list(counts.schema["properties"]) == ["word"]
    context = CallContext(task=CONTEXT.task, deadline_s=1.0, seed=3, state={"seen": 1})
    done = await outcome([counts], "counts", context, word="a")
    assert done.text == "a 3 2" and done.cached


async def test_cancelling_a_run_cancels_its_calls():
    ended = threading.Event()  # the function runs on a loop of its own

    @tool
    async def waits(x: str) -> str:
        """Waits."""
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return x

    running = asyncio.create_task(outcome([waits], "waits", x=""))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.to_thread(ended.wait, 5)


async def test_a_tool_object_need_not_be_asynchronous_and_then_holds_up_nobody():
    let_go = threading.Event()

    class Blocking:
        name, description, schema = "blocking", "Blocks.", {"type": "object", "properties": {}}
        deadline_s = 60.0

        def __call__(self, arguments, context):
            assert let_go.wait(30), "the loop stood still"
            return threading.current_thread().name

    waiting = asyncio.create_task(outcome([Blocking()], "blocking"))
    await asyncio.sleep(0.01)
    let_go.set()
    found = await waiting
    assert (found.status, found.text != threading.current_thread().name) == (CallStatus.OK, True)
