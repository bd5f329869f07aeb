"""Web search: each provider's requests, answers and errors, spoken by a server on this machine. Keys are nowhere to be
found."""

import asyncio
import logging
import time
from email.utils import formatdate

import pytest

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ProviderError, ToolError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.config import ToolConfig, build_tools
from arpo.tools.web import WebSearchTool
from localhost import Asked, Reply, serving

SECRET = "sk-0123456789abcdef-very-secret"
KEYS = {"serper": "SERPER_API_KEY", "brave": "BRAVE_API_KEY", "tavily": "TAVILY_API_KEY", "bing": "BRIGHTDATA_API_KEY"}
CONTEXT = CallContext(task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=()), deadline_s=5, seed=0)

TEMPLATE = {
    "url": "",
    "params": {"q": "{query}", "n": "{k}", "token": "{key}"},
    "headers": {"X-Key": "{key}"},
    "key_env": "ENDPOINT_API_KEY",
    "results": "data.items",
    "title": "name",
    "text": ["summary", "body.text"],
    "source": "link",
}

# answers as each provider documents them, shortened to what matters and what could confuse
ANSWERS = {
    "serper": {
        "searchParameters": {"q": "capital of Peru", "type": "search", "num": 2, "engine": "google"},
        "answerBox": {"title": "Peru / Capital", "answer": "Lima", "link": "https://a.example/peru"},
        "knowledgeGraph": {"title": "Lima", "type": "Capital of Peru", "attributes": {"Elevation": "161 m"}},
        "organic": [
            {
                "title": "Lima - Wikipedia",
                "link": "https://w.example/Lima",
                "snippet": "Lima is the capital.",
                "position": 1,
            },
            {"title": "No snippet", "link": "https://w.example/none", "position": 2},
        ],
        "peopleAlsoAsk": [{"question": "What is Lima known for?"}],
        "credits": 1,
    },
    "brave": {
        "type": "search",
        "query": {"original": "capital of Peru", "more_results_available": True},
        "mixed": {"type": "mixed", "main": [{"type": "web", "index": 0, "all": False}]},
        "web": {
            "type": "search",
            "results": [
                {
                    "title": "Lima",
                    "url": "https://w.example/Lima",
                    "description": "<strong>Lima</strong> is Peru&#x27;s capital &amp; port.",
                    "language": "en",
                    "extra_snippets": ["Founded in 1535."],
                }
            ],
            "family_friendly": True,
        },
    },
    "tavily": {
        "query": "capital of Peru",
        "follow_up_questions": None,
        "answer": None,
        "images": [],
        "results": [
            {"url": "https://w.example/Lima", "title": "Lima", "content": "Lima is the capital.", "score": 0.97}
        ],
        "response_time": 1.2,
    },
    "bing": {
        "general": {"search_engine": "bing", "query": "capital of Peru", "language": "en"},
        "input": {"original_url": "https://www.bing.com/search?q=capital+of+Peru&brd_json=1"},
        "organic": [
            {"link": "https://w.example/Lima", "title": "Lima", "description": "Lima is the capital.", "rank": 1}
        ],
    },
    "searxng": {
        "query": "capital of Peru",
        "number_of_results": 0,
        "results": [
            {
                "url": "https://w.example/Lima",
                "title": "Lima",
                "content": "Lima is the capital.",
                "engine": "brave",
                "score": 1.0,
            }
        ],
        "answers": [],
        "corrections": [],
        "infoboxes": [],
        "suggestions": [],
        "unresponsive_engines": [["google", "timeout"]],
    },
    "retrieval": {
        "result": [[{"document": {"id": "7", "contents": '"Lima"\nLima is the capital.'}, "score": 12.5}]],
    },
    "endpoint": {
        "data": {
            "items": [{"name": "Lima", "body": {"text": "Lima is the capital."}, "link": "https://w.example/Lima"}]
        }
    },
}
NOTHING = {
    "serper": {"searchParameters": {"q": "x"}, "organic": [], "credits": 1},
    "brave": {"type": "search", "query": {"original": "x"}},
    "tavily": {"query": "x", "results": [], "response_time": 0.5},
    "bing": {"general": {"query": "x"}, "organic": []},
    "searxng": {"query": "x", "results": [], "unresponsive_engines": []},
    "retrieval": {"result": [[]]},
    "endpoint": {"data": {"items": []}},
}
EVERY = sorted(ANSWERS)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*KEYS.values(), "ENDPOINT_API_KEY"):
        monkeypatch.setenv(name, SECRET)


def tool(name: str, url: str, **more: object) -> WebSearchTool:
    if name == "endpoint":
        return WebSearchTool({**TEMPLATE, "url": url}, **more)  # type: ignore[arg-type]
    parameters = {"zone": "serp_api1"} if name == "bing" else {}
    return WebSearchTool(name, url=url, **{"parameters": parameters, **more})  # type: ignore[arg-type]


async def fails(name: str, reply: Reply, **more: object) -> ProviderError | ToolError:
    with serving(lambda _: reply) as site, pytest.raises(ToolError) as caught:
        await tool(name, site.url, **more)({"query": "capital of Peru"}, CONTEXT)
    told = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert SECRET not in told and SECRET[:12] not in told
    if isinstance(caught.value, ProviderError):
        assert caught.value.provider == name
    return caught.value


# --- answers


@pytest.mark.parametrize("name", EVERY)
async def test_every_provider_finds(name: str) -> None:
    with serving(lambda _: Reply(ANSWERS[name])) as site:
        done = await tool(name, site.url)({"query": "capital  of Peru"}, CONTEXT)
    assert done.status is CallStatus.OK and not done.empty and "capital" in done.text
    assert len(site.asked) == 1
    if name != "retrieval":
        assert "https://w.example/Lima" in done.metadata["sources"]
    for line in done.text.splitlines():
        assert "<" not in line and "&#" not in line


@pytest.mark.parametrize("name", EVERY)
async def test_nothing_found_is_no_error(name: str) -> None:
    with serving(lambda _: Reply(NOTHING[name])) as site:
        done = await tool(name, site.url)({"query": "capital of Peru"}, CONTEXT)
    assert (done.text, done.status, done.empty) == ("No results.", CallStatus.OK, True)


async def test_what_each_provider_is_asked() -> None:
    asked: dict[str, Asked] = {}
    for name in EVERY:
        with serving(lambda _, name=name: Reply(ANSWERS[name])) as site:  # type: ignore[misc]
            more = {"parameters": {"gl": "us"}} if name == "serper" else {}
            await tool(name, site.url, k=2, **more)({"query": "Perú & co"}, CONTEXT)
        asked[name] = site.asked[0]
    serper, brave, tavily, bing = (asked[name] for name in ("serper", "brave", "tavily", "bing"))
    assert (serper.method, serper.headers["x-api-key"]) == ("POST", SECRET)
    assert serper.json == {"q": "Perú & co", "num": 2, "gl": "us"}
    assert (brave.method, brave.headers["x-subscription-token"]) == ("GET", SECRET)
    assert brave.query == {"q": "Perú & co", "count": "2", "text_decorations": "false"}
    assert (tavily.headers["authorization"], tavily.json) == (
        f"Bearer {SECRET}",
        {"query": "Perú & co", "max_results": 2},
    )
    assert bing.headers["authorization"] == f"Bearer {SECRET}"
    assert bing.json["zone"] == "serp_api1" and bing.json["format"] == "raw"
    assert bing.json["url"] == "https://www.bing.com/search?q=Per%C3%BA+%26+co&count=2&brd_json=1"
    assert (asked["searxng"].path, asked["searxng"].query) == ("/search", {"q": "Perú & co", "format": "json"})
    assert asked["retrieval"].path == "/retrieve"
    assert asked["retrieval"].json == {"queries": ["Perú & co"], "topk": 2, "return_scores": True}
    assert asked["endpoint"].query == {"q": "Perú & co", "n": "2", "token": SECRET}
    assert asked["endpoint"].headers["x-key"] == SECRET


async def test_what_google_shows_on_top_comes_first_and_results_are_cut_to_k() -> None:
    with serving(lambda _: Reply(ANSWERS["serper"])) as site:
        text = (await tool("serper", site.url, k=3, urls=True)({"query": "capital of Peru"}, CONTEXT)).text
    assert text.splitlines() == [
        "Peru / Capital: Lima (https://a.example/peru)",
        "Lima: Capital of Peru. Elevation: 161 m",
        "Lima - Wikipedia: Lima is the capital. (https://w.example/Lima)",
    ]


async def test_long_results_are_cut_around_the_hit() -> None:
    long = {
        "query": "x",
        "results": [{"title": "T", "url": "u", "content": "filler " * 200 + "Lima is the capital. " + "more " * 200}],
    }
    with serving(lambda _: Reply(long)) as site:
        text = (await tool("tavily", site.url, passage_chars=120)({"query": "capital Lima"}, CONTEXT)).text
    assert "Lima is the capital." in text and len(text) <= 120


# --- errors


@pytest.mark.parametrize("name", [*sorted(KEYS), "endpoint"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_final_and_named_by_its_variable(name: str, status: int) -> None:
    error = await fails(
        name, Reply({"message": f"Unauthorized. Key {SECRET}", "detail": {"error": SECRET}}, status=status)
    )
    assert isinstance(error, ProviderError) and not error.retriable
    assert KEYS.get(name, "ENDPOINT_API_KEY") in str(error)


@pytest.mark.parametrize("name", EVERY)
async def test_too_many_requests_can_be_asked_again_when_the_provider_says(name: str) -> None:
    error = await fails(name, Reply({"message": "slow down"}, status=429, headers={"Retry-After": "7"}))
    assert isinstance(error, ProviderError) and error.retriable and error.retry_after_s == 7
    date = formatdate(time.time() + 30, usegmt=True)
    error = await fails(name, Reply("", status=429, headers={"Retry-After": date}))
    assert isinstance(error, ProviderError) and error.retry_after_s is not None and 20 < error.retry_after_s <= 30
    error = await fails(name, Reply("", status=429))
    assert isinstance(error, ProviderError) and error.retriable and error.retry_after_s is None


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "reply",
    [
        Reply({"error": "internal"}, status=500),
        Reply("<html>Bad gateway</html>", status=502, kind="text/html"),
        Reply("<!doctype html><title>Sign in</title>", kind="text/html"),
        Reply('{"results": [{"title": "cut o'),
        Reply('{"results": []}', length=5_000),  # the connection ends before the answer does
        Reply(b"not gzip", headers={"Content-Encoding": "gzip"}),
        Reply(b"[" + b"1," * (3 << 20) + b"1]"),
        Reply({}, wait_s=0.6),
        Reply('{"a": "' + "b" * 100 + '"}', drip_s=0.02),
    ],
    ids=["500", "502 page", "page", "cut JSON", "cut connection", "bad gzip", "too large", "slow", "drips"],
)
async def test_what_may_pass_can_be_asked_again(name: str, reply: Reply) -> None:
    error = await fails(name, reply, timeout_s=0.4)
    assert isinstance(error, ProviderError) and error.retriable


@pytest.mark.parametrize("name", EVERY)
async def test_json_of_another_form_is_final_and_says_what_came(name: str) -> None:
    for content in (
        {"hello": 1},
        [1, 2],
        "text",
        None,
        {"result": 3, "results": 3, "organic": 3, "type": "search", "web": 3, "data": 3},
    ):
        error = await fails(
            name, Reply(b"null" if content is None else content if not isinstance(content, str) else b'"x"')
        )
        assert isinstance(error, ProviderError) and not error.retriable


@pytest.mark.parametrize("name", EVERY)
async def test_a_query_that_is_refused_is_the_models_to_read(name: str) -> None:
    error = await fails(name, Reply({"detail": "query too long"}, status=400))
    assert not isinstance(error, ProviderError) and "query too long" in str(error)


async def test_nobody_there() -> None:
    error = None
    try:
        await tool("searxng", "http://127.0.0.1:9")({"query": "x"}, CONTEXT)
    except ProviderError as caught:
        error = caught
    assert error is not None and error.retriable and "ConnectError" in str(error)


async def test_errors_that_a_status_alone_does_not_tell() -> None:
    spent = await fails("serper", Reply({"message": "Not enough credits", "statusCode": 400}, status=400))
    assert isinstance(spent, ProviderError) and not spent.retriable
    invalid = {
        "type": "ErrorResponse",
        "error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "The token is invalid.", "status": 422},
    }
    wrong = await fails("brave", Reply(invalid, status=422))
    assert isinstance(wrong, ProviderError) and not wrong.retriable and "BRAVE_API_KEY" in str(wrong)
    limited = {"type": "ErrorResponse", "error": {"code": "RATE_LIMITED", "status": 429}}
    second = {"X-RateLimit-Remaining": "0, 1500", "X-RateLimit-Reset": "1, 1419704"}
    soon = await fails("brave", Reply(limited, status=429, headers=second))
    assert isinstance(soon, ProviderError) and soon.retriable and soon.retry_after_s == 1
    month = {"X-RateLimit-Remaining": "1, 0", "X-RateLimit-Reset": "1, 1419704"}
    over = await fails("brave", Reply(limited, status=429, headers=month))
    assert isinstance(over, ProviderError) and not over.retriable
    plan = await fails(
        "tavily", Reply({"detail": {"error": "This request exceeds your plan's set usage limit."}}, status=432)
    )
    assert isinstance(plan, ProviderError) and not plan.retriable and "usage limit" in str(plan)
    blocked = await fails("bing", Reply(b"", headers={"x-brd-error-code": "reject_block", "x-brd-error": "challenge"}))
    assert isinstance(blocked, ProviderError) and blocked.retriable and "challenge" in str(blocked)
    client = await fails(
        "bing", Reply(b"", headers={"x-brd-error-code": "client_10000", "x-brd-error": "Authentication failed"})
    )
    assert isinstance(client, ProviderError) and not client.retriable
    html = await fails("searxng", Reply("<h1>Forbidden</h1>", status=403, kind="text/html"))
    assert isinstance(html, ProviderError) and "settings.yml" in str(html)
    mute = await fails("searxng", Reply({"query": "x", "results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}))
    assert isinstance(mute, ProviderError) and mute.retriable and "google CAPTCHA" in str(mute)


# --- keys


async def test_a_key_is_in_no_log_no_repr_and_no_attribute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in EVERY:
        with serving(lambda _, name=name: Reply(ANSWERS[name])) as site:  # type: ignore[misc]
            made = tool(name, site.url)
            done = await made({"query": "Lima"}, CONTEXT)
        assert SECRET not in f"{made!r} {vars(made)!r} {done!r} {made._provider!r}"
    assert caplog.records and SECRET not in caplog.text


def test_what_cannot_work_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY")
    for options, word in [
        ({"provider": "serpr"}, "did you mean 'serper'"),
        ({"provider": "searxng"}, "hosted by yourself"),
        ({"provider": "bing"}, "zone"),
        ({"provider": "brave", "k": 0}, "1 to 100"),
        ({"provider": {"url": "ftp://x"}}, "provider.url"),
        ({"provider": {"url": "http://x", "resluts": "a"}}, "provider.resluts"),
        ({"provdier": "serper"}, "did you mean 'provider'"),
    ]:
        with pytest.raises(ConfigError, match=word):
            build_tools([ToolConfig(use="web", options=options)])
    with pytest.raises(ConfigError, match="SERPER_API_KEY"):
        WebSearchTool("serper").ready()  # a run asks; a replay needs no key
    WebSearchTool("brave").ready()


def test_a_version_changes_with_what_shapes_results_alone() -> None:
    first = WebSearchTool("brave", k=3)
    assert first.version == WebSearchTool("brave", k=3, timeout_s=3, cost=0.1).version
    assert first.cacheable and first.provider == "brave"
    others = [
        WebSearchTool("brave", k=4),
        WebSearchTool("tavily", k=3),
        WebSearchTool("brave", k=3, parameters={"country": "DE"}),
    ]
    assert len({first.version, *(other.version for other in others)}) == 4


def test_a_tool_outlives_an_event_loop() -> None:
    with serving(lambda _: Reply(ANSWERS["tavily"])) as site:
        made = tool("tavily", site.url)
        for _ in range(3):
            assert asyncio.run(made({"query": "Lima"}, CONTEXT)).text


async def test_many_at_once() -> None:
    with serving(lambda _: Reply(ANSWERS["tavily"], wait_s=0.05)) as site:
        made = tool("tavily", site.url)
        done = await asyncio.gather(*(made({"query": f"q{number}"}, CONTEXT) for number in range(40)))
    assert len({result.text for result in done}) == 1 and len(site.asked) == 40
