"""Clients that want the server's memory, its loop or the places of others: what they send is refused in words, and the
next client is answered."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from test_serving import CAPITAL, NATIVE, SCHEMA, TOOLS, looks_up, sizes

from agent_world import deployed, served
from arpo.agent.answering import _Stream
from small_world import Search


def post(url: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"content-type": "application/json", **headers}
    return httpx.post(f"{url}/v1/chat/completions", content=content, headers=kind, timeout=120)


@pytest.mark.parametrize("model", ["run", "run/model"])
def test_a_conversation_that_cannot_fit_is_refused_before_it_is_tokenised(
    tokenizer: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = deployed(tokenizer, sizes("a"))
    monkeypatch.setattr("arpo.chat.token_text.TokenText._encode", None)
    long = [
        [{"role": "user", "content": "a" * 3_900_000}],
        [CAPITAL, {"role": "assistant", "content": "b" * 90_000}, CAPITAL],
        [CAPITAL] * 9_999,
    ]
    with served(agent) as running:
        for messages in long:
            got = post(running.url, {"model": model, "messages": messages})
            assert got.status_code == 400 and "too many for 2,000 tokens" in got.text


def test_many_short_messages_and_calls_end_where_the_context_is_full(tokenizer: Any) -> None:
    calls = [{"id": f"c{at}", "function": {"name": "search", "arguments": '{"query":"x"}'}} for at in range(900)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in calls]
    pairs = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}] * 900
    with served(deployed(tokenizer, looks_up(tokenizer), Search())) as running:
        for more in ([{"role": "assistant", "tool_calls": calls}, *results], pairs):
            got = post(running.url, {"model": "run/model", "messages": [CAPITAL, *more], "tools": TOOLS})
            assert got.status_code == 400 and "tokens of at most 2000" in got.text


def test_a_client_may_leave_calls_of_a_turn_out(tokenizer: Any) -> None:
    both = NATIVE + "\n" + NATIVE.replace("capital", "river")
    with served(deployed(tokenizer, lambda prompt, params: both, Search(), run={"chat": {"format": "template"}})) as on:
        asked = {"model": "run/model", "messages": [CAPITAL], "tools": TOOLS}
        message = post(on.url, asked).json()["choices"][0]["message"]
        kept = {**message, "tool_calls": message["tool_calls"][:1]}
        result = {"role": "tool", "tool_call_id": kept["tool_calls"][0]["id"], "content": "Lima"}
        for offered in (TOOLS, [{"type": "function", "function": {"name": "other", "parameters": SCHEMA}}]):
            got = post(on.url, {**asked, "messages": [CAPITAL, kept, result], "tools": offered})
            assert got.status_code in (200, 400), got.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "0.0.0.0", "127.0.0.1."])
def test_without_a_key_nothing_is_served_under_another_name(tokenizer: Any, host: str) -> None:
    with served(deployed(tokenizer, sizes("a"))) as running:
        for path in ("/health", "/metrics", "/v1/models", "/mcp", "/", "/nothing"):
            assert httpx.get(running.url + path, headers={"host": host}).status_code in (400, 403), path


def test_without_its_key_health_tells_nothing_of_the_model(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARPO_TEST_KEY", "the-key")
    with served(deployed(tokenizer, sizes("a")), key_env="ARPO_TEST_KEY") as running:
        assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}
        assert "model" in httpx.get(f"{running.url}/health", headers={"authorization": "Bearer the-key"}).json()


def test_a_body_that_never_ends_is_answered(tokenizer: Any) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with served(deployed(tokenizer, sizes("a")), timeout_s=0.3) as running:
        address = (httpx.URL(running.url).host, httpx.URL(running.url).port)
        with socket.create_connection(address, timeout=60) as slow:
            slow.sendall(head + b"Content-Length: 1000\r\n\r\n{")
            assert slow.recv(1000).startswith(b"HTTP/1.1 504")


async def test_a_client_that_does_not_read_gives_its_place_back() -> None:
    released = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            released.set()

    async def blocked(message: Any) -> None:
        await asyncio.Event().wait()

    async def nothing_comes() -> Any:
        await asyncio.Event().wait()

    stack, left = AsyncExitStack(), chunks()
    stack.callback(released.set)
    await anext(left)
    stream = _Stream(left, stack, asyncio.get_running_loop().time() + 0.05)
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    async with asyncio.timeout(60):
        await stream(scope, nothing_comes, blocked)
    assert released.is_set()
