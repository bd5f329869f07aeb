"""A class whose methods are tools: one object, one thread, and what happens to calls that wait or hang."""

import asyncio
import gc
import sqlite3
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

import arpo
from arpo.core.tree import Call, CallStatus, ToolCallResult
from arpo.errors import ConfigError, ProviderError
from arpo.recipe.run import plain
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.config import ToolConfig, ToolsConfig, build_entries, build_tools
from arpo.tools.gateway import ToolGateway, build_gateway

TASK = Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",))


def context(deadline_s: float = 5.0) -> CallContext:
    return CallContext(task=TASK, deadline_s=deadline_s, seed=0)


class Shelf:
    """Things on a shelf."""

    let_go = threading.Event()

    def __init__(self, file: str = ":memory:", first: str = "tea") -> None:
        self.made_in = threading.current_thread().name
        self.db = sqlite3.connect(file)
        self.db.execute("create table if not exists things (name text)")
        self._put(first)

    def _put(self, thing: str) -> None:
        with self.db:
            self.db.execute("insert into things values (?)", (thing,))

    @arpo.tool(deadline_s=4)
    def has(self, thing: str) -> bool:
        """Says whether a thing is there.

        Args:
            thing: its name
        """
        return bool(self.db.execute("select 1 from things where name = ?", (thing,)).fetchone())

    @arpo.tool
    def put(self, thing: str, context: CallContext) -> str:
        """Puts a thing there."""
        assert threading.current_thread().name == self.made_in and context.seed == 0
        self._put(thing)
        return self.made_in

    @arpo.tool
    def waits(self, seconds: float) -> str:
        """Takes its time."""
        self.let_go.wait(seconds)
        return "done"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    made = types.ModuleType("shelf_of_a_user")
    made.Shelf = Shelf  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made.__name__


def around(offered: Any = Shelf, **settings: Any) -> tuple[ToolGateway, dict[str, Any]]:
    config = ToolsConfig(offered=(offered,), **settings)
    entries = build_entries(config.offered)
    return build_gateway(config, entries), {tool.name: tool for tools in entries for tool in tools}


async def ask(
    tool_gateway: ToolGateway, tools: dict[str, Any], name: str, deadline_s: float = 5.0, **arguments: Any
) -> ToolCallResult:
    return await tool_gateway.call(tools, Call(name=name, arguments=arguments), context(deadline_s))


def test_all_methods_that_are_tools_are_offered_as_functions_are(module: str, tmp_path: Path) -> None:
    has, put, waits = build_tools(
        [ToolConfig(use=f"{module}:Shelf", options={"file": str(tmp_path / "a.db"), "first": "rice"})]
    )
    assert (has.name, put.name, waits.name) == ("has", "put", "waits")
    assert has.schema["properties"] == {"thing": {"description": "its name", "type": "string"}}
    assert has.deadline_s == 4 and put.deadline_s is None
    assert list(put.schema["properties"]) == ["thing"]
    answer = asyncio.run(run_call([has], Call(name="has", arguments={"thing": "rice"}), context()))
    assert (answer.status, answer.text) == (CallStatus.OK, "true")
    with pytest.raises(ConfigError, match="no such option"):
        build_tools([ToolConfig(use=f"{module}:Shelf", options={"path": "x"})])
    with pytest.raises(ConfigError, match="cannot be set up: OperationalError"):
        build_tools([ToolConfig(use=f"{module}:Shelf", options={"file": str(tmp_path / "none" / "a.db")})])


def test_a_run_that_was_given_the_class_names_it_in_its_recipe() -> None:
    run = arpo.Run(data={"train": {"source": "atlas"}}, tools=[Shelf])
    assert yaml.safe_dump(plain(run)["tools"]["offered"]).count("test_tools_of_a_class:Shelf") == 1


def test_the_object_is_made_and_called_in_one_thread_which_ends_with_it() -> None:
    tool_gateway, tools = around()
    where = asyncio.run(ask(tool_gateway, tools, "put", thing="rice")).text
    assert where == "arpo-Shelf" and asyncio.run(ask(tool_gateway, tools, "has", thing="rice")).text == "true"
    del tool_gateway, tools
    for _ in range(100):
        gc.collect()
        if where not in {thread.name for thread in threading.enumerate()}:
            return
        time.sleep(0.05)
    raise AssertionError("a thread is left")


def test_each_run_has_an_object_of_its_own() -> None:
    one, other = around(), around()
    asyncio.run(ask(*one, "put", thing="rice"))
    assert asyncio.run(ask(*other, "has", thing="rice")).text == "false"


async def test_waiting_for_the_object_is_no_part_of_a_deadline() -> None:
    tool_gateway, tools = around()
    answers = await asyncio.gather(
        *(ask(tool_gateway, tools, "waits", deadline_s=0.5, seconds=0.05) for _ in range(30))
    )
    assert {answer.status for answer in answers} == {CallStatus.OK}, "1.5 s of work in calls of at most 0.5 s"


async def test_while_a_call_hangs_others_wait_for_the_object_and_are_not_failed() -> None:
    Shelf.let_go.clear()
    tool_gateway, tools = around()
    tool_gateway.tell = lambda text, level: None
    late = await ask(tool_gateway, tools, "waits", deadline_s=0.2, seconds=30)
    assert late.status is CallStatus.TIMEOUT
    with pytest.raises(ProviderError, match="Shelf is still busy"):
        await tools["has"]({"thing": "tea"}, context())
    asked = asyncio.create_task(ask(tool_gateway, tools, "has", thing="tea"))
    await asyncio.sleep(0.3)
    assert not asked.done()
    Shelf.let_go.set()
    try:
        answer = await asked
        assert (answer.status, answer.text) == (CallStatus.OK, "true") and answer.attempts > 1
    finally:
        Shelf.let_go.clear()


async def test_a_call_that_is_cancelled_before_its_turn_never_runs() -> None:
    tool_gateway, tools = around()
    first = asyncio.create_task(tools["waits"]({"seconds": 0.3}, context()))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(tools["put"]({"thing": "rice"}, context()))
    await asyncio.sleep(0.05)
    second.cancel()
    await first
    assert (await ask(tool_gateway, tools, "has", thing="rice")).text == "false"


class Client:
    """Asynchronous tools, of which several run at once."""

    def __init__(self) -> None:
        self.at_once = self.most = 0

    @arpo.tool
    async def fetch(self, x: int) -> int:
        """Fetches."""
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.05)
        self.at_once -= 1
        return self.most

    @arpo.tool
    async def loop(self, x: int) -> int:
        """Says on which loop it runs."""
        return id(asyncio.get_running_loop())

    @arpo.tool
    async def same(self, x: int) -> int:
        """Says on which loop it runs."""
        return id(asyncio.get_running_loop())


async def test_asynchronous_methods_share_a_loop_and_run_at_once() -> None:
    tool_gateway, tools = around(Client)
    answers = await asyncio.gather(*(ask(tool_gateway, tools, "fetch", x=number) for number in range(8)))
    assert max(int(answer.text) for answer in answers) == 8
    assert (await ask(tool_gateway, tools, "loop", x=1)).text == (await ask(tool_gateway, tools, "same", x=1)).text


class Mixed:
    @arpo.tool
    def one(self, x: int) -> int:
        """One."""
        return x

    @arpo.tool
    async def other(self, x: int) -> int:
        """Other."""
        return x


def test_what_cannot_be_is_said_before_a_run() -> None:
    with pytest.raises(ConfigError, match=r"some of its tools are `async def`.*Mixed"):
        build_tools([Mixed])
    with pytest.raises(ConfigError, match=r"this tool is a method, and of no object.*Name its class"):
        build_tools([Shelf.has])
