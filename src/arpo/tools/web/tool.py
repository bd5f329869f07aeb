"""The tool for web search: one class for all providers.

Knows how results look and what the recipe says. Refuses to know retries, rates and caches: the gateway has those.
"""

import os
from collections.abc import Mapping
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, ProviderError, nearest
from arpo.http.exchange import HttpClient, HttpResponse, refused
from arpo.options import custom
from arpo.search.passages import Passage
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult
from arpo.tools.cache_key import digest
from arpo.tools.search import NOTHING, passage_line
from arpo.tools.web.providers import PROVIDERS, SearchProvider, SearchRequest
from arpo.tools.web.template import Template, from_template


class WebSearchTool(ToolBase):
    """Searches the web.

    `provider`: serper, brave, tavily, bing (through Bright Data), searxng, retrieval (Search-R1's API), or a mapping
    that describes any endpoint (see arpo.tools.web.template). `url`: another address of it; needed for searxng and
    retrieval. `key_env`: the environment variable with the key, if not the usual one. `parameters`: the provider's own
    (`{gl: us, hl: en}` for serper). `k` results, each a line `Title: text` of at most `passage_chars`; with `urls` also
    its address, for a tool that opens pages. `cost`: money that a call costs. Raises ConfigError for what cannot work;
    for a key that is not there, `ready` does.
    """

    cacheable = True

    def __init__(
        self,
        provider: str | Mapping[str, Any] = "serper",
        *,
        k: int = 5,
        url: str = "",
        key_env: str = "",
        parameters: Mapping[str, Any] | None = None,
        passage_chars: int | None = 400,
        urls: bool = False,
        timeout_s: float = 15.0,
        cost: float = 0.0,
        name: str = "search",
        description: str = "Searches the web.",
    ) -> None:
        if not 1 <= k <= 100:
            raise ConfigError("1 to 100 results", where="k", value=k)
        self._provider = _provider(provider)
        self.provider = self._provider.name
        self.name, self.description, self.k, self.passage_chars, self.urls, self.cost = (
            name,
            description,
            k,
            passage_chars,
            urls,
            cost,
        )
        self.url = url or self._provider.url
        self.key_env = key_env or self._provider.key_env
        self.parameters = dict(parameters or {})
        self.schema: JsonSchema = {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to look for, in a few words."}},
            "required": ["query"],
        }
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"{self.provider} is hosted by yourself: where?", where="url", value=self.url, hint="http://HOST:PORT"
            )
        if missing := [need for need in self._provider.needs if need not in self.parameters]:
            hint = f"parameters: {{{', '.join(f'{need}: YOURS' for need in missing)}}}"
            raise ConfigError(
                f"{self.provider} needs {', '.join(missing)}", where="parameters", value=self.parameters, hint=hint
            )
        built = {"k": k, "parameters": self.parameters, "passage_chars": passage_chars, "urls": urls}
        self.version = digest(
            "web", {"provider": dict(provider) if isinstance(provider, Mapping) else provider, "url": self.url, **built}
        )
        self.deadline_s = timeout_s + 1.0  # the provider's own limit comes first, so that it is told as the provider's
        self._exchange = HttpClient(self.provider, timeout_s=timeout_s)

    def ready(self) -> None:
        """Raises ConfigError where the key is not there. A run asks before its start, a replay does not."""
        if self.key_env and not os.environ.get(self.key_env):
            hint = f"Put it into the environment variable {self.key_env}"
            raise ConfigError(f"{self.provider} needs a key", where="key_env", hint=hint)

    def __repr__(self) -> str:
        return f"WebSearchTool({self.provider!r}, k={self.k})"

    def normalise(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Space around a query says nothing."""
        return {**arguments, "query": arguments["query"].strip()}

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            return ToolResult(text=f"{self.name} needs 'query', a text", status=CallStatus.REFUSED)
        found = (await self.find(query))[: self.k]
        text = "\n".join(self._line(passage, query) for passage in found)
        sources = [passage.source for passage in found]
        return ToolResult(text=text or NOTHING, empty=not text, cost=self.cost, metadata={"sources": sources})

    async def find(self, query: str) -> list[Passage]:
        """What the provider has for `query`. Raises ProviderError where it fails, ToolError where it refuses the
        query."""
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        asked = SearchRequest(
            query=" ".join(query.split()), k=self.k, url=self.url, key=key, parameters=self.parameters
        )
        answer = await self._exchange.send(self._provider.ask(asked))
        self._provider.check(answer, key)
        if answer.status >= 300:
            refused(answer, self.provider, self.key_env, key)
        return [passage for passage in self._read(answer) if passage.title or passage.text]

    def _read(self, answer: HttpResponse) -> list[Passage]:
        try:
            value = answer.value
        except ValueError:
            kind = "a web page" if answer.content.lstrip()[:1] == b"<" else "no JSON, or only a part"
            raise ProviderError(f"{self.provider} answered with {kind}", provider=self.provider) from None
        try:
            return list(self._provider.read(value))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            has = (
                f"it has {', '.join(list(value)[:8])}"
                if isinstance(value, Mapping)
                else f"it is a {type(value).__name__}"
            )
            what = (
                f"{self.provider}: an answer of another form ({type(error).__name__}: {error}; {has}); "
                "is the URL right?"
            )
            raise ProviderError(what, retriable=False, provider=self.provider) from None

    def _line(self, passage: Passage, query: str) -> str:
        line = passage_line(passage, query, self.passage_chars)
        return f"{line} ({passage.source})" if self.urls and passage.source else line


def _provider(given: str | Mapping[str, Any]) -> SearchProvider:
    if isinstance(given, Mapping):
        return from_template(custom(Template, given, "provider"))
    if given not in PROVIDERS:
        raise ConfigError(
            "no such provider",
            where="provider",
            value=given,
            hint=f"{nearest(str(given), PROVIDERS)} Or a mapping that describes an endpoint",
        )
    return PROVIDERS[given]
