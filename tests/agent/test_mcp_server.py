"""The agent as an MCP server, used by the official client over stdio and HTTP, and by arpo's own tool `mcp`."""

import asyncio
import logging
import os
import sys
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from agent_world import deployed, gated, served
from arpo.engines.scripted import Script
from arpo.tools.config import ToolConfig, build_tools
from small_world import ANSWER, results_in, search
from tiny_project import TinyProject


def looks_up(tokenizer: Any) -> Any:
    """Calls once a question, then answers with the number of questions that it sees."""

    def play(prompt: Any, params: Any) -> Script | str:
        text = tokenizer.decode(list(prompt))
        if not results_in(tokenizer, prompt):
            return search()
        return f"<think>So.</think><answer>{text.count('Question')} questions</answer>"

    return play


@asynccontextmanager
async def over_http(url: str, key: str = "none") -> Any:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        yield client


async def test_a_client_over_http_asks_hears_steps_and_goes_on(tokenizer: Any) -> None:
    heard: list[str] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    with served(deployed(tokenizer, looks_up(tokenizer))) as running:
        async with over_http(running.url) as client:
            [tool] = (await client.list_tools()).tools
            assert (
                tool.name == "ask"
                and "search" in tool.description
                and set(tool.input_schema["properties"])
                == {
                    "question",
                    "conversation",
                    "samples",
                }
            )
            first = await client.call_tool("ask", {"question": "Question a"}, progress_callback=progress)
            assert not first.is_error, first.content
            assert first.structured_content["answer"] == "1 questions"
            assert len(heard) == 3 and "Peru: capital is Lima." in heard[1]
            name = first.structured_content["conversation"]
            then = await client.call_tool("ask", {"question": "Question b", "conversation": name, "samples": 3})
            other = await client.call_tool("ask", {"question": "Question c"})
            assert [r.structured_content["answer"] for r in (then, other)] == ["2 questions", "1 questions"]
            for wrong, says in (({"conversation": "x"}, "no conversation"), ({"samples": 0}, "from 1 to 256")):
                refused = await client.call_tool("ask", {"question": "Question", **wrong})
                assert refused.is_error and says in refused.content[0].text
        assert running.server.admission.idle


async def test_limits_and_failures_are_told_as_errors_of_the_tool(tokenizer: Any) -> None:
    agent = deployed(tokenizer, lambda prompt, params: Script(said=ANSWER, fails_after=0))
    gate = gated(agent)
    with served(agent, running=1, waiting=0, timeout_s=30) as running:
        async with over_http(running.url) as client:
            held = asyncio.create_task(client.call_tool("ask", {"question": "Question"}))
            while not gate.started:  # noqa: ASYNC110  in the server's thread
                await asyncio.sleep(0.005)
            refused = await client.call_tool("ask", {"question": "Question"})
            assert refused.is_error and "Try again in" in refused.content[0].text
            gate.open.set()
            failed = await held
            assert failed.is_error and "the script fails after 0 tokens" in failed.content[0].text


async def test_a_key_is_asked_for(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARPO_TEST_KEY", "the-key")
    with served(deployed(tokenizer, looks_up(tokenizer)), key_env="ARPO_TEST_KEY") as running:
        async with over_http(running.url, "the-key") as client:
            assert (await client.list_tools()).tools
        with pytest.raises(BaseException):  # noqa: B017  the SDK raises a group of its own
            async with over_http(running.url, "another") as client:
                await client.list_tools()


def test_an_agent_is_a_tool_of_another_agent(tokenizer: Any) -> None:
    """Through arpo's own client."""
    with served(deployed(tokenizer, looks_up(tokenizer))) as running:
        [tool] = build_tools([ToolConfig(use="mcp", options={"url": f"{running.url}/mcp", "connect_s": 60})])
        assert tool.name == "ask" and "question" in tool.schema["properties"]


@pytest.mark.slow
async def test_the_command_speaks_stdio(tiny_project: TinyProject) -> None:
    words = ["-m", "arpo", "serve", str(tiny_project.recipe), "--mcp"]
    parameters = StdioServerParameters(command=sys.executable, args=words, env=dict(os.environ))
    async with Client(stdio_client(parameters)) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["ask"]
        answer = await client.call_tool("ask", {"question": "Parity of 3"})
        assert answer.structured_content["ending"]


async def test_a_client_s_mistakes_are_told_to_the_client_alone(
    tokenizer: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    with served(deployed(tokenizer, looks_up(tokenizer))) as running:
        async with over_http(running.url) as client:
            for ask, name in ((client.get_prompt, "\x1b[31mevil"), (client.read_resource, "file:///evil")):
                with pytest.raises(Exception, match=r"(?i)error|unknown|not found"):
                    await ask(name)
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out and "evil" not in said.err + said.out
