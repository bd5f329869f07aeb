"""MCP servers that misbehave: what they do to one call stays with that call, and what they start ends with them."""

import asyncio
import gc
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import arpo
from arpo.cli.commands import app
from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import attempt
from arpo.tools.config import ToolConfig, ToolsConfig, build_entries, build_tools
from arpo.tools.gateway import build_gateway
from arpo.tools.mcp import session
from arpo.tools.settings import LimitsConfig
from localhost import Asked, Reply, serving

SCRIPT = str(Path(__file__).parent / "odd_mcp_server.py")
CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=()), deadline_s=60, seed=0
)
MALFORMED = ["half", "no result", "wrong content", "wrong block", "list", "deep", "long"]


def odd(mode: str, *more: Any, **options: Any) -> dict[str, Any]:
    command = [sys.executable, "-S", SCRIPT, mode, *map(str, more)]
    offered = ToolConfig(use="mcp", options={"command": command, **options})
    return {tool.name: tool for tool in build_tools([offered])}


@pytest.mark.parametrize("mode", ["dies", *MALFORMED])
def test_an_argument_that_breaks_the_server_is_an_error_of_that_call(mode: str) -> None:
    """In the gateway of a run, with others under way: nothing pauses, and the others are answered."""
    offered = (ToolConfig(use="mcp", options={"command": [sys.executable, "-S", SCRIPT, mode]}),)
    config = ToolsConfig(offered=offered, limits=LimitsConfig(patience_s=0, retries=0))
    entries = build_entries(config.offered)
    gateway, tools = build_gateway(config, entries), {tool.name: tool for tool in entries[0]}

    async def all_of_them() -> list[Any]:
        calls = [Call(name=name, arguments={"how": how}) for name, how in [("ok", "x"), ("odd", "x"), ("odd", "well")]]
        return await asyncio.gather(*(gateway.call(tools, call, CONTEXT) for call in [*calls * 4, calls[1]]))

    outcomes = asyncio.run(all_of_them())
    for number, outcome in enumerate(outcomes):
        broken = number % 3 == 1 or number == 12
        assert outcome.status is (CallStatus.ERROR if broken else CallStatus.OK), outcome
        assert outcome.text == "fine" or ("MCP server" in outcome.text and broken)
        assert outcome.seconds < CONTEXT.deadline_s


def test_no_schema_of_a_server_is_run_on_its_results() -> None:
    """A pattern that backtracks would hold the interpreter for ever."""
    result, _ = asyncio.run(attempt(odd("output")["odd"], {"how": "x"}, CONTEXT))
    assert result.text == "done"


@pytest.mark.parametrize("how", ["long", "packed", "elsewhere"])
def test_what_a_service_answers_is_bounded_and_leads_nowhere(how: str) -> None:
    def answered(asked: Asked) -> Reply:
        if asked.method != "POST" or "id" not in asked.json:
            return Reply(status=405 if asked.method != "POST" else 202)
        method, number = asked.json["method"], asked.json["id"]
        if method == "tools/call":
            if how == "elsewhere":
                return Reply(status=307, headers={"Location": f"http://localhost:{service.port}/elsewhere"})
            result = {"content": [{"type": "text", "text": "x" * (5 << 20 if how == "long" else 9)}]}
            packed = gzip.compress(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode())
            headers = {"Content-Encoding": "gzip"} if how == "packed" else {}
            return Reply(packed if how == "packed" else gzip.decompress(packed), headers=headers)
        hello = {"capabilities": {"tools": {}}, "serverInfo": {"name": "odd", "version": "1"}}
        results = {
            "initialize": {"protocolVersion": asked.json.get("params", {}).get("protocolVersion"), **hello},
            "tools/list": {"tools": [{"name": "t", "inputSchema": {"type": "object", "properties": {}}}]},
        }
        if method not in results:
            return Reply({"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no such method"}})
        return Reply({"jsonrpc": "2.0", "id": number, "result": results[method]})

    with serving(answered) as service:
        (tool,) = build_tools([ToolConfig(use="mcp", options={"url": f"{service.url}/mcp"})])
        result, _ = asyncio.run(attempt(tool, {}, CONTEXT))
        assert result.status is CallStatus.ERROR and "MCP server" in result.text, result
        assert all(asked.path == "/mcp" for asked in service.asked)


def test_a_server_that_fails_whatever_it_is_asked_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_BROKEN", 2)
    tool = odd("dies")["odd"]
    first, _ = asyncio.run(attempt(tool, {"how": "a"}, CONTEXT))
    assert first.status is CallStatus.ERROR
    with pytest.raises(session.ProviderError, match="fails, whatever it is asked"):
        asyncio.run(attempt(tool, {"how": "b"}, CONTEXT))


def test_a_banner_on_stdout_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    tools = odd("banner")
    assert asyncio.run(attempt(tools["ok"], {}, CONTEXT))[0].text == "fine"
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends what a server leaves behind")
def test_the_children_of_a_server_end_with_it(tmp_path: Path) -> None:
    tools = odd("children", tmp_path / "pids")
    children = list(map(int, (tmp_path / "pids").read_text().split()))
    assert all(map(lives, children))
    tools.clear()
    gc.collect()
    until = time.monotonic() + 20
    while any(map(lives, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(lives, children))


def test_servers_end_together_when_the_process_does(tmp_path: Path) -> None:
    """Each may take seconds to end: one after another, Ctrl-C with several of them would take as long as all."""
    program = (
        "import sys; from arpo.tools.config import ToolConfig, build_tools\n"
        "offered = ToolConfig(use='mcp', options={'command': sys.argv[1:], 'tools': ['ok']})\n"
        "kept = [build_tools([offered]) for _ in range(3)]"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(arpo.__file__).parents[1])}
    command = [sys.executable, "-c", program, sys.executable, "-S", SCRIPT, "meets", str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    assert len(list(tmp_path.glob("*.met"))) == 3


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_names_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        odd("names")


def test_a_malformed_tool_is_refused_by_name_and_the_others_can_be_had() -> None:
    for name, why in {
        "listed type": "inputSchema.type: Input should be 'object', not ['object']",
        "no schema": "inputSchema: Field required",
        "odd text": "description: Input should be a valid string, not 3",
        "odd names": "inputSchema.required: Input should be a valid list, not 'how'",
        "number 6 of its list": "name: Field required",
        "number 7 of its list": "it: Input should be",
    }.items():
        with pytest.raises(ConfigError) as refused:
            odd("malformed", tools=["ok", name])
        assert f"its tool {name} wrongly: {why}" in str(refused.value) and "odd_mcp_server" in str(refused.value)
    with pytest.raises(ConfigError, match=r"its tool listed type wrongly.*Name tools that you need in `tools`: ok"):
        odd("malformed")
    assert asyncio.run(attempt(odd("malformed", tools=["ok"])["ok"], {}, CONTEXT))[0].text == "fine"


def test_any_schema_is_listed_without_a_call_and_shows_no_control_characters(tmp_path: Path) -> None:
    command = f"[{sys.executable}, -S, {SCRIPT}, MODE, {tmp_path / 'written'}]"

    def listed(mode: str, *words: str) -> Any:
        tools = f"tools=[{{use: mcp, options: {{command: {command.replace('MODE', mode)}}}}}]"
        return CliRunner().invoke(app, ["tools", "quickstart", tools, *words])

    shown = listed("schemas")
    assert shown.exit_code == 0, shown.output
    for name in ("lists", "recursive", "booleans", "choice", "required"):
        assert f"\n{name}\n" in shown.output and f"{name}(" not in shown.output
    assert "\x1b" not in shown.output and "\x07" not in shown.output
    called = listed("schemas", "--call")
    assert (
        called.exit_code == 0
        and "choice({" in called.output
        and "required({" in called.output
        and called.output.count("may change something") == 3
    )
    for words in ((), ("--call",)):
        assert listed("write", *words).exit_code == 0 and not (tmp_path / "written").exists()
    assert listed("write", "odd", "x").exit_code == 0 and (tmp_path / "written").exists()
