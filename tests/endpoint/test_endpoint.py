"""The client of served models against a real server on this machine, with all that such servers do wrong."""

import asyncio
import gzip
import json
from typing import Any

import pytest

from arpo.endpoint.client import Endpoint
from arpo.endpoint.config import EndpointConfig
from arpo.errors import ConfigError, ProviderError, ToolError, ToolsStoppedError
from localhost import Asked, Reply, serving

SAID: dict[str, Any] = {
    "choices": [{"message": {"role": "assistant", "content": "Lima"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 1_000_000,
        "completion_tokens": 500_000,
        "prompt_tokens_details": {"cached_tokens": 400_000},
    },
}
ASKED = [{"role": "user", "content": "Capital of Peru?"}]


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(EndpointConfig(**{"url": f"{url}/v1", "model": "m", "retries": 2, **settings}))


async def one(client: Endpoint) -> Any:
    try:
        return await client.chat(ASKED, max_tokens=9, temperature=0)
    finally:
        await client.close()


def in_turn(*replies: Reply) -> Any:
    """A server that gives these replies one after the other, the last one for ever."""
    left = list(replies)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


async def test_what_is_asked_and_what_comes_back() -> None:
    with serving(lambda _: Reply(SAID)) as site:
        reply = await one(endpoint(site.url, options={"reasoning_effort": "low", "temperature": None}))
        asked = site.asked[0]
    assert asked.path == "/v1/chat/completions" and "authorization" not in asked.headers
    assert asked.json == {"model": "m", "max_tokens": 9, "messages": ASKED, "reasoning_effort": "low"}
    assert (reply.text, reply.finish, reply.usage.completion_tokens) == ("Lima", "stop", 500_000)


async def test_money_is_counted_cached_tokens_at_their_own_price() -> None:
    with serving(lambda _: Reply(SAID)) as site:
        client = endpoint(site.url, prices={"prompt": 2.0, "cached": 0.5, "completion": 8.0})
        reply = await one(client)
    assert reply.usage.money == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.5 * 8)
    assert client.spent.money == reply.usage.money and client.spent.requests == client.spent.attempts == 1
    assert "5.4 in money" in str(client.spent)


async def test_nothing_is_asked_beyond_the_budget() -> None:
    with serving(lambda _: Reply(SAID)) as site:
        client = endpoint(site.url, prices={"completion": 1.0}, budget=1.0)
        for _ in range(2):
            await client.chat(ASKED, max_tokens=9)
        with pytest.raises(ToolsStoppedError, match="budget of the endpoint is used up: 1 of 1"):
            await one(client)
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        Reply({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "0.6"}),
        Reply({"error": "x"}, status=500),
        Reply("<html>bad gateway</html>", status=502, kind="text/html"),
        Reply('{"choices": [{"mess'),
        Reply(SAID, length=10_000),
        Reply({"choices": []}),
        Reply({"choices": [{}]}),
        Reply({"choices": [{"message": {"content": ["no", "text"]}}]}),
        Reply("null"),
        Reply(SAID, wait_s=1.2),
        Reply(b"[" * 100_000),
        Reply(b'{"error": ' * 50_000, status=500),
        Reply(b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1' + b"0" * 400 + b"}}"),
        Reply(b'{"choices": [{"message": {"content": "x", "reasoning_details": ' + b"[" * 400 + b"]" * 400 + b"}}]}"),
        Reply({"choices": [{"text": "x", "message": {"content": 5}}]}),
        Reply({"choices": [{"text": "x", "message": ["x"]}]}),
        Reply({"choices": [{"message": {"content": "x", "tool_calls": [{}] * 9_999}}]}),
        Reply(gzip.compress(gzip.compress(json.dumps(SAID).encode())), headers={"Content-Encoding": "gzip, gzip"}),
    ],
    ids=[
        *("429", "500", "502 page", "cut JSON", "cut body", "no choice", "empty choice", "no text", "null", "slow"),
        *(
            "deep",
            "deep error",
            "giant usage",
            "deep part",
            "no content",
            "listed message",
            "calls",
            "gzip twice",
        ),
    ],
)
async def test_what_may_pass_is_asked_again(wrong: Reply) -> None:
    with serving(in_turn(wrong, Reply(SAID))) as site:
        client = endpoint(site.url, timeout_s=0.8)
        assert (await one(client)).text == "Lima"
    assert (client.spent.requests, client.spent.attempts) == (1, 2)


async def test_what_an_endpoint_said_can_be_sent_back() -> None:
    odd = b'{"choices": [{"message": {"content": [{"type": "text", "text": "x", "\\ud800": NaN, "at": 1e999}]}}]}'
    with serving(lambda _: Reply(odd)) as site:
        client = endpoint(site.url)
        reply = await client.chat(ASKED, max_tokens=9)
        again = await client.chat([*ASKED, {"role": "assistant", **reply.message}], max_tokens=9)
        await client.close()
    assert again.text == "x" and site.asked[1].json["messages"][1]["content"][0]["at"] is None


@pytest.mark.parametrize("number", ["-1000000000", "1e999", "-1e999", "NaN"])
async def test_a_usage_gives_no_money_back(number: str) -> None:
    usage = f'{{"prompt_tokens": {number}, "prompt_tokens_details": {{"cached_tokens": {number}}}}}'
    with serving(lambda _: Reply(json.dumps({**SAID, "usage": "USAGE"}).replace('"USAGE"', usage))) as site:
        client = endpoint(site.url, prices={"prompt": 1.0, "completion": 1.0})
        await one(client)
    assert (client.spent.money, client.spent.prompt_tokens, client.spent.cached_tokens) == (0, 0, 0)


async def test_a_wrong_key_stops_at_once_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-very-secret-1234")
    words = {"error": {"message": "Incorrect API key provided: sk-very-secret-1234"}}
    with serving(lambda _: Reply(words, status=401)) as site:
        client = endpoint(site.url, key_env="MY_API_KEY")
        client.ready("evaluation.judge")
        with pytest.raises(ToolsStoppedError, match="refuses the key in MY_API_KEY") as caught:
            await one(client)
    assert len(site.asked) == 1 and site.asked[0].headers["authorization"] == "Bearer sk-very-secret-1234"
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r} {client!r} {client.config!r}"


async def test_an_endpoint_that_repeats_the_key_puts_it_into_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-very-secret-1234")
    message = {"content": "sk-very-secret-1234", "reasoning_content": "it is sk-very-secret-1234"}
    content = json.dumps({"choices": [{"message": message, "finish_reason": "sk-very-secret-1234"}]})
    with serving(lambda _: Reply(content.replace("sk-", "\\u0073k-"))) as site:
        reply = await one(endpoint(site.url, key_env="MY_API_KEY"))
    assert "secret" not in repr(reply) and reply.text == "***"


def test_a_key_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.judge\.key_env.*NOT_SET_ANYWHERE"):
        endpoint("http://x", key_env="NOT_SET_ANYWHERE").ready("evaluation.judge")


async def test_a_request_that_the_server_refuses_is_not_repeated() -> None:
    with serving(lambda _: Reply({"error": {"message": "maximum context length is 4096"}}, status=400)) as site:
        client = endpoint(site.url)
        with pytest.raises(ToolError, match="maximum context length") as caught:
            await one(client)
    assert len(site.asked) == 1 and not isinstance(caught.value, ProviderError)


async def test_an_endpoint_that_stays_down_stops_with_what_to_do() -> None:
    with serving(lambda _: Reply(status=503)) as site:
        client = endpoint(site.url, retries=0, patience_s=0.2)
        with pytest.raises(ToolsStoppedError, match=r"has been down for .* raise patience_s"):
            await one(client)


async def test_so_many_at_a_time() -> None:
    now, most = 0, 0

    def answer(asked: Asked) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        import time

        time.sleep(0.02)
        now -= 1
        return Reply(SAID)

    with serving(answer) as site:
        client = endpoint(site.url, concurrency=5)
        replies = await asyncio.gather(*(client.chat(ASKED, max_tokens=9) for _ in range(100)))
        await client.close()
    assert len(replies) == 100 and 2 <= most <= 5


async def test_text_that_no_utf_8_can_hold_is_sent_all_the_same() -> None:
    with serving(lambda _: Reply(SAID)) as site:
        client = endpoint(site.url)
        await client.chat([{"role": "user", "content": "a \ud800 b"}], max_tokens=9)
        await client.close()
        assert site.asked[0].json["messages"][0]["content"] == "a ? b"


async def test_inside_a_tool_a_used_up_budget_is_the_providers_refusal() -> None:
    with serving(lambda _: Reply(SAID)) as site:
        client = endpoint(site.url, prices={"completion": 1.0}, budget=0.1)
        await client.chat_once(ASKED, max_tokens=9)
        with pytest.raises(ProviderError, match="budget of the endpoint") as caught:
            await client.chat_once(ASKED, max_tokens=9)
        await client.close()
    assert not caught.value.retriable
