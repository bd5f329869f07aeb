"""Clients that want the server's memory, its loop or the places of others: what they send is refused in words, and the
next client is answered."""

import json
from typing import Any

import httpx
import pytest
from test_serving import CAPITAL, NATIVE, SCHEMA, TOOLS, looks_up, sizes

from agent_world import deployed, served
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
    ]
    with served(agent) as running:
        for messages in long:
            got = post(running.url, {"model": model, "messages": messages})
            assert got.status_code == 400 and "too many for 2,000 tokens" in got.text


def test_many_short_messages_and_calls_end_where_the_context_is_full(tokenizer: Any) -> None:
    calls = [{"id": f"c{at}", "function": {"name": "search", "arguments": '{"query":"x"}'}} for at in range(900)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in calls]
    pairs = [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}] * 9000
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
