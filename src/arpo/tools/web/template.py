"""Any HTTP endpoint that answers with JSON as a provider, described in the recipe.

    {url: "https://api.example.org/v1/find", params: {q: "{query}", n: "{k}"}, headers: {X-Key: "{key}"}, key_env:
    EXAMPLE_KEY,
     results: data.items, title: name, text: [summary, body.text], source: link}

Knows placeholders and paths. A value that is `{k}` alone becomes a number.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field

from arpo.config import Config
from arpo.http.exchange import HttpRequest
from arpo.search.passages import Passage
from arpo.tools.web.providers import SearchProvider, SearchRequest, passage


class Template(Config):
    """An endpoint. `{query}`, `{k}` and `{key}` are filled in; the key not in the URL, which is written down in
    places."""

    name: str = "endpoint"
    """What errors and limits call it."""
    url: str = Field(pattern=r"^https?://")
    """Where it is asked."""
    method: Literal["GET", "POST"] = "GET"
    """With POST, `body` is sent as JSON."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Of the query string."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Sent along."""
    body: Any = None
    """JSON; placeholders may stand at any depth."""
    key_env: str = ""
    """The environment variable that holds the key."""
    results: str = ""
    """Where the list of results stands in the answer: names and numbers with dots. Empty: the answer is the list."""
    title: str | list[str] = "title"
    """Where a result's title stands; of several, the first that is there."""
    text: str | list[str] = "text"
    """Where its text stands."""
    source: str | list[str] = "url"
    """Where its address stands."""


def from_template(template: Template) -> SearchProvider:
    """The provider that `template` describes."""

    def ask(asked: SearchRequest) -> HttpRequest:
        own = {name: str(value) for name, value in template.headers.items()}
        params = template.params | dict(asked.parameters)
        return HttpRequest(
            method=template.method,
            url=asked.url.replace("{query}", quote(asked.query, safe="")).replace("{k}", str(asked.k)),
            params={name: _filled(value, asked) for name, value in params.items() if not _secret(value)},
            headers={name: _filled(value, asked) for name, value in own.items() if not _secret(value)},
            body=None if template.body is None else _filled(template.body, asked),
            secret_params={name: str(_filled(value, asked)) for name, value in params.items() if _secret(value)},
            secret_headers={name: str(_filled(value, asked)) for name, value in own.items() if _secret(value)},
        )

    def read(value: Any) -> list[Passage]:
        return [
            passage(*(_first(hit, where) for where in (template.title, template.text, template.source)))
            for hit in results(value)
        ]

    def results(value: Any) -> Sequence[Any]:
        found = at(value, template.results)
        if not isinstance(found, list):
            raise TypeError(f"{template.results or 'the answer'} is no list")
        return found

    return SearchProvider(name=template.name, url=template.url, key_env=template.key_env, ask=ask, read=read)


def at(value: Any, path: str) -> Any:
    """What stands at `path` ("data.items.0.name") in JSON. Raises KeyError where there is nothing."""
    for step in filter(None, path.split(".")):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(path) from None
    return value


def _first(hit: Any, paths: str | Sequence[str]) -> Any:
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            if found := at(hit, path):
                return found
        except KeyError:
            continue
    return ""


def _filled(value: Any, asked: SearchRequest) -> Any:
    if isinstance(value, Mapping):
        return {name: _filled(each, asked) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, asked) for each in value]
    if value == "{k}":
        return asked.k
    if isinstance(value, str):
        parts = value.replace("{k}", str(asked.k)).replace("{key}", asked.key)
        return parts.replace("{query}", asked.query)  # last: a query may contain what looks like a placeholder
    return value


def _secret(value: Any) -> bool:
    return isinstance(value, str) and "{key}" in value
