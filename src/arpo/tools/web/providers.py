"""The request and response formats of each provider of web search, with links to their documentation.

Refuses to know connections, limits and how results look to the model.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from arpo.errors import ProviderError
from arpo.http.exchange import HttpRequest, HttpResponse, retry_after, said
from arpo.search.passages import Passage

TAG = re.compile(r"</?\w[^>]*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """One search, from which a provider builds its HTTP request."""

    query: str
    k: int
    url: str
    key: str
    parameters: Mapping[str, Any]  # the provider's own, from the recipe

    def __repr__(self) -> str:  # without the key
        return f"SearchRequest({self.query!r}, k={self.k})"


def nothing_special(answer: HttpResponse, key: str) -> None:
    """For a provider whose errors all show in the status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProvider:
    """A service for web search. `read` raises KeyError or TypeError for JSON that does not have the documented form;
    `check` raises for errors that the status alone does not show."""

    name: str
    url: str  # "": self-hosted, and the recipe names it
    key_env: str  # the environment variable that holds the key; "": there is none
    ask: Callable[[SearchRequest], HttpRequest]
    read: Callable[[Any], Sequence[Passage]]
    check: Callable[[HttpResponse, str], None] = nothing_special
    needs: tuple[str, ...] = ()  # parameters without which it cannot be asked


def passage(title: Any, text: Any, source: Any) -> Passage:
    """A result as a passage: tags and entities off, on one line."""
    return Passage(_plain(title), _plain(text), str(source or ""))


def _plain(text: Any) -> str:
    return " ".join(html.unescape(TAG.sub("", str(text or ""))).split())


# --- Serper: POST https://google.serper.dev/search, header X-API-KEY (https://serper.dev/playground shows requests and
# responses)


def _ask_serper(asked: SearchRequest) -> HttpRequest:
    body = {"q": asked.query, "num": asked.k, **asked.parameters}
    return HttpRequest(method="POST", url=asked.url, body=body, secret_headers={"X-API-KEY": asked.key})


def _read_serper(value: Any) -> list[Passage]:
    """`answerBox` and `knowledgeGraph`, where Google shows them, before `organic`."""
    found = []
    if box := value.get("answerBox"):
        found.append(passage(box.get("title"), box.get("answer") or box.get("snippet"), box.get("link")))
    if graph := value.get("knowledgeGraph"):
        facts = [graph.get("type"), graph.get("description")]
        facts += [f"{name}: {fact}" for name, fact in (graph.get("attributes") or {}).items()]
        found.append(
            passage(
                graph.get("title"), ". ".join(filter(None, facts)), graph.get("descriptionLink") or graph.get("website")
            )
        )
    organic = value["organic"] if "searchParameters" not in value else value.get("organic") or []
    return found + [passage(hit.get("title"), hit.get("snippet"), hit.get("link")) for hit in organic]


def _check_serper(answer: HttpResponse, key: str) -> None:
    if answer.status == 400 and "credits" in said(answer).casefold():
        raise ProviderError(
            f"serper: the account is exhausted: {said(answer, key)}", retriable=False, provider="serper"
        )


# --- Brave: GET /res/v1/web/search, header X-Subscription-Token (https://api-dashboard.search.brave.com/documentation)


def _ask_brave(asked: SearchRequest) -> HttpRequest:
    params = {"q": asked.query, "count": min(asked.k, 20), "text_decorations": "false", **asked.parameters}
    return HttpRequest(
        url=asked.url,
        params=params,
        headers={"Accept": "application/json"},
        secret_headers={"X-Subscription-Token": asked.key},
    )


def _read_brave(value: Any) -> list[Passage]:
    """`web` is missing where nothing was found."""
    if value["type"] != "search":
        raise KeyError("type")
    hits = (value.get("web") or {}).get("results") or []
    texts = [" ".join([hit.get("description") or "", *(hit.get("extra_snippets") or [])]) for hit in hits]
    return [passage(hit.get("title"), text, hit.get("url")) for hit, text in zip(hits, texts, strict=True)]


def _check_brave(answer: HttpResponse, key: str) -> None:
    """A wrong key is 422 with a code. Limits are told by window, shortest first: `X-RateLimit-Remaining: 0, 1500` and
    `X-RateLimit-Reset: 1, 1419704` (seconds); the last window is the month."""
    if answer.status == 422 and b"SUBSCRIPTION_TOKEN_INVALID" in answer.content:
        raise ProviderError("brave refuses the key in BRAVE_API_KEY (422)", retriable=False, provider="brave")
    if answer.status != 429:
        return
    remaining, reset = (_numbers(answer.headers.get(f"x-ratelimit-{what}", "")) for what in ("remaining", "reset"))
    spent = [seconds for left, seconds in zip(remaining, reset, strict=False) if left == 0]
    if spent and max(spent) > 3_600:
        raise ProviderError(
            f"brave: the plan is used up for {max(spent) / 86_400:.1f} days", retriable=False, provider="brave"
        )
    wait = retry_after(answer)
    raise ProviderError(
        "brave: too many requests (429)",
        retry_after_s=wait if wait is not None else max(spent, default=None),
        provider="brave",
    )


def _numbers(header: str) -> list[float]:
    return [float(part) for part in header.split(",") if part.strip().isdecimal()]


# --- Tavily: POST https://api.tavily.com/search, bearer token
# (https://docs.tavily.com/documentation/api-reference/endpoint/search)


def _ask_tavily(asked: SearchRequest) -> HttpRequest:
    body = {"query": asked.query, "max_results": min(asked.k, 20), **asked.parameters}
    return HttpRequest(method="POST", url=asked.url, body=body, secret_headers={"Authorization": f"Bearer {asked.key}"})


def _read_tavily(value: Any) -> list[Passage]:
    """`answer` is there where `include_answer` was asked for."""
    found = [passage("", value["answer"], "")] if value.get("answer") else []
    return found + [passage(hit.get("title"), hit.get("content"), hit.get("url")) for hit in value["results"]]


# --- Bing through Bright Data's SERP API: POST https://api.brightdata.com/request
# (https://docs.brightdata.com/scraping-automation/serp-api; `brd_json=1` gives the page as JSON)


def _ask_bing(asked: SearchRequest) -> HttpRequest:
    own = {name: value for name, value in asked.parameters.items() if name != "zone"}
    page = "https://www.bing.com/search?" + urlencode({"q": asked.query, "count": asked.k, **own, "brd_json": 1})
    body = {"zone": asked.parameters["zone"], "url": page, "format": "raw"}
    return HttpRequest(method="POST", url=asked.url, body=body, secret_headers={"Authorization": f"Bearer {asked.key}"})


def _read_bing(value: Any) -> list[Passage]:
    if "organic" not in value and "general" not in value:
        raise KeyError("organic")
    hits = value.get("organic") or []
    return [passage(hit.get("title"), hit.get("description"), hit.get("link")) for hit in hits]


def _check_bing(answer: HttpResponse, key: str) -> None:
    """What went wrong between Bright Data and Bing comes in headers, under a status of 200 too."""
    code = answer.headers.get("x-brd-error-code") or answer.headers.get("x-brd-err-code") or ""
    words = answer.headers.get("x-brd-error") or answer.headers.get("x-brd-err-msg") or ""
    if answer.status < 400 and (code or words):
        told = f"{code} {words}".replace(key or "\0", "***").strip()[:200]
        raise ProviderError(f"brightdata: {told}", retriable=not code.startswith("client_"), provider="bing")


# --- SearXNG: GET /search?format=json (https://docs.searxng.org/dev/search_api.html)


def _ask_searxng(asked: SearchRequest) -> HttpRequest:
    return HttpRequest(
        url=f"{asked.url.rstrip('/')}/search", params={"q": asked.query, "format": "json", **asked.parameters}
    )


def _read_searxng(value: Any) -> list[Passage]:
    hits = value["results"]
    silent = [
        " ".join(map(str, engine)) if isinstance(engine, list) else str(engine)
        for engine in value.get("unresponsive_engines") or []
    ]
    if not hits and silent:  # nobody looked: that is not the same as nothing found
        raise ProviderError(f"searxng: no engine answered ({'; '.join(silent)[:200]})", provider="searxng")
    return [passage(hit.get("title"), hit.get("content"), hit.get("url")) for hit in hits]


def _check_searxng(answer: HttpResponse, key: str) -> None:
    if answer.status == 403:
        why = "does not give JSON: its settings.yml needs `search: {formats: [html, json]}`"
        raise ProviderError(f"searxng {why} (403)", retriable=False, provider="searxng")


# --- a retrieval server with Search-R1's API, such as `arpo serve-search`


def _ask_retrieval(asked: SearchRequest) -> HttpRequest:
    url = asked.url.rstrip("/")
    body = {"queries": [asked.query], "topk": asked.k, "return_scores": True, **asked.parameters}
    return HttpRequest(method="POST", url=url if url.endswith("/retrieve") else f"{url}/retrieve", body=body)


def _read_retrieval(value: Any) -> list[Passage]:
    from arpo.search.passages import passage_from

    (hits,) = value["result"]
    return [passage_from(hit.get("document", hit), "result") for hit in hits]


PROVIDERS = {
    provider.name: provider
    for provider in (
        SearchProvider(
            name="serper",
            url="https://google.serper.dev/search",
            key_env="SERPER_API_KEY",
            ask=_ask_serper,
            read=_read_serper,
            check=_check_serper,
        ),
        SearchProvider(
            name="brave",
            url="https://api.search.brave.com/res/v1/web/search",
            key_env="BRAVE_API_KEY",
            ask=_ask_brave,
            read=_read_brave,
            check=_check_brave,
        ),
        SearchProvider(
            name="tavily",
            url="https://api.tavily.com/search",
            key_env="TAVILY_API_KEY",
            ask=_ask_tavily,
            read=_read_tavily,
        ),
        SearchProvider(
            name="bing",
            url="https://api.brightdata.com/request",
            key_env="BRIGHTDATA_API_KEY",
            ask=_ask_bing,
            read=_read_bing,
            check=_check_bing,
            needs=("zone",),
        ),
        SearchProvider(name="searxng", url="", key_env="", ask=_ask_searxng, read=_read_searxng, check=_check_searxng),
        SearchProvider(name="retrieval", url="", key_env="", ask=_ask_retrieval, read=_read_retrieval),
    )
}
