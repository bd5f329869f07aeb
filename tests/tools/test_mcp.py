"""MCP: a real server process, over stdio and over HTTP, becomes tools; what it does wrong is told to whom it
concerns."""

import asyncio
import gc
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError, ProviderError, ToolError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import attempt
from arpo.tools.config import ToolConfig, ToolsConfig, build_entries, build_tools
from arpo.tools.gateway import build_gateway, recorded_offers
from arpo.tools.mcp import McpTool

SCRIPT = str(Path(__file__).parent / "mcp_server_for_tests.py")
COMMAND = [sys.executable, SCRIPT]
CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=()), deadline_s=120, seed=0
)


ENDLESS = """
import json, sys

tools = {"tools": [{"name": "a", "inputSchema": {"type": "object"}}], "nextCursor": "the same page again"}
for message in map(json.loads, sys.stdin):
    if "id" in message:
        version = message.get("params", {}).get("protocolVersion")
        hello = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "e", "version": "1"}}
        answer = {"initialize": {"result": hello}, "tools/list": {"result": tools}}
        answer = answer.get(message["method"], {"error": {"code": -32601, "message": "no such method"}})
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""


def tools_of(**options: Any) -> dict[str, Any]:
    return {tool.name: tool for tool in build_tools([ToolConfig(use="mcp", options={"connect_s": 300, **options})])}


@pytest.fixture(scope="module")
def stdio() -> dict[str, Any]:
    return tools_of(command=COMMAND)


@pytest.fixture(scope="module")
def http() -> Iterator[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield tools_of(url=f"http://127.0.0.1:{port}/mcp")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["stdio", "http"])
def tools(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(request.param)
    return found


async def test_a_server_becomes_tools(tools: dict[str, Any]) -> None:
    assert list(tools) == ["add", "fail", "environment", "table", "picture", "nothing", "slow", "die"]
    add = tools["add"]
    assert add.description == "Adds two numbers. The second is 1 where it is left out."
    assert add.schema["required"] == ["a"] and add.schema["properties"]["b"]["default"] == 1
    done = await add({"a": 2, "b": 40}, CONTEXT)
    assert (done.text, done.status) == ("42", CallStatus.OK)


async def test_results_that_are_no_text(tools: dict[str, Any]) -> None:
    assert "3" in (await tools["table"]({}, CONTEXT)).text
    assert (await tools["picture"]({}, CONTEXT)).text == "[image/png]"
    assert (await tools["nothing"]({}, CONTEXT)).status is CallStatus.OK


async def test_what_the_model_does_wrong_is_told_to_it(tools: dict[str, Any]) -> None:
    failed = await tools["fail"]({"text": "x"}, CONTEXT)
    assert failed.status is CallStatus.ERROR and "no good: x" in failed.text
    try:
        wrong = (await tools["add"]({"a": "many"}, CONTEXT)).text
    except ToolError as error:
        assert not isinstance(error, ProviderError)
        wrong = str(error)
    assert "a" in wrong and "int" in wrong


async def test_many_calls_at_once_and_one_that_is_given_up(tools: dict[str, Any]) -> None:
    done = await asyncio.gather(*(tools["add"]({"a": number}, CONTEXT) for number in range(30)))
    assert [result.text for result in done] == [str(number + 1) for number in range(30)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await tools["slow"]({"seconds": 30}, CONTEXT)
    assert (await tools["add"]({"a": 1}, CONTEXT)).text == "2"


async def test_a_call_that_takes_long_is_told_to_the_model_and_is_no_outage_however_busy_the_loop_is(
    tools: dict[str, Any],
) -> None:
    waiting = asyncio.create_task(attempt(tools["slow"], {"seconds": 30}, replace(CONTEXT, deadline_s=0.3)))
    await asyncio.sleep(0.1)
    time.sleep(0.5)  # noqa: ASYNC251  a learner that holds the interpreter: both sides have been late for long when the loop goes on
    outcome, _ = await waiting
    assert outcome.status is CallStatus.TIMEOUT and outcome.fault == "deadline"


def test_a_session_outlives_event_loops(tools: dict[str, Any]) -> None:
    for _ in range(3):
        assert asyncio.run(tools["add"]({"a": 1}, CONTEXT)).text == "2"


def test_a_call_that_ends_the_server_is_an_error_of_that_call_and_the_server_ends_with_its_tools() -> None:
    tools = tools_of(command=COMMAND, tools=["add", "die"])
    ended, _ = asyncio.run(attempt(tools["die"], {}, CONTEXT))
    assert ended.status is CallStatus.ERROR and ended.fault == "raised CallBrokeServerError"
    assert asyncio.run(tools["add"]({"a": 1}, CONTEXT)).text == "2"
    thread = tools["add"]._server._thread
    tools.clear()
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


async def test_a_server_gets_the_variables_that_it_is_given_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("MY_TOKEN", "tok")
    options = {"command": COMMAND, "env": {"TOKEN": "Bearer $MY_TOKEN"}, "tools": ["environment"], "keep": True}
    (only,) = build_tools([ToolConfig(use="mcp", name="look", options=options)])
    assert only.name == "look" and isinstance(only, McpTool) and only.cacheable
    for name, value in (("TOKEN", "Bearer tok"), ("SERPER_API_KEY", "(none)"), ("MY_TOKEN", "(none)")):
        assert (await only({"name": name}, CONTEXT)).text == value


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "`command` to start or a `url`"),
        ({"command": COMMAND, "url": "http://x"}, "`command` to start or a `url`"),
        ({"command": "no-such-program-here"}, r"options\.command: .*no-such-program-here"),
        ({"command": [sys.executable, "-c", "raise SystemExit('bad start')"]}, "bad start"),
        ({"url": "http://127.0.0.1:9/mcp", "connect_s": 5}, r"options\.url: .*cannot be reached"),
        ({"command": COMMAND, "tools": ["ad"]}, "did you mean 'add'"),
        ({"command": COMMAND, "env": {"A": "$NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE"),
        ({"comand": COMMAND}, "did you mean 'command'"),
    ],
)
def test_what_cannot_work_is_told_before_the_run(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        tools_of(**options)


def test_a_list_of_tools_without_end_is_told(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text(ENDLESS)
    with pytest.raises(ConfigError, match=r"without an end.*cursor .* comes again"):
        tools_of(command=[sys.executable, str(server)])


def test_several_tools_of_a_server_are_renamed_by_their_names() -> None:
    def built(name: Any) -> list[Any]:
        return build_tools([ToolConfig(use="mcp", name=name, options={"command": COMMAND, "tools": ["add", "fail"]})])

    plus, fail = built({"add": "plus"})
    assert (plus.name, fail.name) == ("plus", "fail")
    assert asyncio.run(plus({"a": 1}, CONTEXT)).text == "2"
    with pytest.raises(ConfigError, match="renames some of them"):
        built("calculator")
    with pytest.raises(ConfigError, match="did you mean 'add'"):
        built({"ad": "plus"})


def test_a_replay_starts_no_server_and_needs_none(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text(Path(SCRIPT).read_text())
    options = {"command": [sys.executable, str(server)], "tools": ["add", "table"], "keep": True}
    offered, cache = ToolConfig(use="mcp", options=options), {"file": str(tmp_path / "record.sqlite")}

    def asked(mode: str, **changes: Any) -> list[Any]:
        config = ToolsConfig(offered=(offered.model_copy(update=changes),), mode=mode, cache=cache)
        entries = build_entries(config.offered, recorded_offers(config))
        tool_gateway, tools = build_gateway(config, entries), {tool.name: tool for tool in entries[0]}
        calls = [Call(name="add", arguments={"a": 2, "b": 40}), Call(name="table", arguments={})]
        return [tools, [asyncio.run(tool_gateway.call(tools, call, CONTEXT)) for call in calls]]

    first, told = asked("record")
    server.unlink()
    again, replayed = asked("replay")
    assert [(o.status, o.text) for o in replayed] == [(o.status, o.text) for o in told] and all(
        o.cached for o in replayed
    )
    shown = [[(tool.name, tool.description, tool.schema) for tool in tools.values()] for tools in (first, again)]
    assert shown[0] == shown[1] and not any(hasattr(tool, "_server") for tool in again.values())
    with pytest.raises(ConfigError, match="the record knows no such tool"):
        asked("replay", options={**options, "tools": ["fail"]})
    with pytest.raises(ConfigError, match="does not say what tools this server has"):
        asked("replay", options={**options, "command": "another"})
