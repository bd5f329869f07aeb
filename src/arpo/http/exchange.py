"""An HTTP client for services: limits on size and time, and API keys that no log, error or repr shows.

A key is not part of the request that hooks, errors and httpx's log lines see: it travels in the request's extensions,
and the transport adds it to what goes over the wire. Knows httpx, sizes and deadlines. Refuses to know what responses
mean; it does not retry (`arpo.http.limits` does).
"""

import asyncio
import ssl
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, NoReturn

import httpx

from arpo.errors import ProviderError, ToolError
from arpo.foreign import loads

MOST_BYTES = 4 << 20  # of a response
CONNECTIONS = 64  # at a time
ACCEPT_ENCODING = "gzip, deflate"  # 1 KB of these unpacks to at most 1 MB; of brotli and zstd, to any size
MOST_SAID = 200  # characters of a service's message in an error
SECRETS = "arpo.secrets"
KEY = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request. `secret_*` hold keys: they are sent, and no repr, log or error shows them."""

    method: str = "GET"
    url: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = field(default=None, repr=False)  # sent as JSON; bodies are never logged, so it may hold a key
    secret_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def value(self) -> Any:
        """The content as JSON. Raises ValueError for anything else."""
        return loads(self.content)


class HttpClient:
    """Sends requests to one service, which errors name."""

    def __init__(
        self, service: str, *, timeout_s: float = 15.0, most_bytes: int = MOST_BYTES, connections: int = CONNECTIONS
    ) -> None:
        self.service, self.timeout_s, self.most_bytes, self.connections = service, timeout_s, most_bytes, connections
        # connections belong to an event loop; a command may run several, one after the other
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        return f"HttpClient({self.service!r})"

    async def send(self, request: HttpRequest) -> HttpResponse:
        """The response, whatever its status. Raises ProviderError (retriable) where none arrives complete and in
        time."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._send(request)
        except (TimeoutError, httpx.TimeoutException):
            self._fail(f"no answer within {self.timeout_s:g} s")
        except httpx.TransportError as error:  # its text and its request could show a key
            self._fail(f"the connection failed ({type(error).__name__})")
        except httpx.DecodingError:
            self._fail("an answer that cannot be unpacked")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            self._fail("the URL cannot be used", retriable=False)

    async def close(self) -> None:
        """Close the connections of this event loop; the next request opens new ones."""
        if client := self._clients.pop(asyncio.get_running_loop(), None):
            await client.aclose()

    async def _send(self, request: HttpRequest) -> HttpResponse:
        client = self._client()
        built = client.build_request(
            request.method,
            request.url,
            params=dict(request.params) or None,
            headers=dict(request.headers),
            json=request.body,
            extensions={SECRETS: (dict(request.secret_params), dict(request.secret_headers))},
        )
        answer = await client.send(built, stream=True)
        try:
            if not is_packed_as_accepted(answer.headers):
                self._fail("an answer that is packed in a way that was not asked for")
            content = bytearray()
            async for chunk in answer.aiter_bytes():
                content += chunk
                if len(content) > self.most_bytes:
                    self._fail(f"an answer of more than {self.most_bytes:,} bytes")
        finally:
            await answer.aclose()
        return HttpResponse(answer.status_code, answer.headers, bytes(content))

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            own = _WithSecrets(
                httpx.AsyncHTTPTransport(verify=tls(), limits=httpx.Limits(max_connections=self.connections))
            )
            headers = {"User-Agent": "arpo", "Accept-Encoding": ACCEPT_ENCODING}
            self._clients[loop] = httpx.AsyncClient(
                transport=own, mounts=_proxies(), timeout=self.timeout_s, headers=headers
            )
        return self._clients[loop]

    def _fail(self, what: str, *, retriable: bool = True) -> NoReturn:
        raise ProviderError(f"{self.service}: {what}", retriable=retriable, provider=self.service) from None


def is_packed_as_accepted(headers: Mapping[str, str]) -> bool:
    """Whether an answer is packed once at most, and as ACCEPT_ENCODING says: then a piece that arrives is small when it
    is unpacked, too."""
    return headers.get("content-encoding", "").strip().lower() in ("", "identity", *ACCEPT_ENCODING.split(", "))


class _WithSecrets(httpx.AsyncBaseTransport):
    """Adds keys to a request below logging, hooks and errors."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        params, headers = request.extensions.get(SECRETS, ({}, {}))
        url = request.url.copy_merge_params(params) if params else request.url
        extensions = {name: value for name, value in request.extensions.items() if name != SECRETS}
        sent = httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
        sent.headers.update(headers)
        return await self._transport.handle_async_request(sent)

    async def aclose(self) -> None:
        await self._transport.aclose()


@cache
def tls() -> ssl.SSLContext:
    """The trusted certificates, read once a process: reading takes longer than most requests."""
    return httpx.create_ssl_context()


def _proxies() -> dict[str, httpx.AsyncBaseTransport | None]:
    """The proxies of HTTPS_PROXY, ALL_PROXY and NO_PROXY, which httpx ignores where a transport is given."""
    from urllib.request import getproxies, proxy_bypass

    mounts: dict[str, httpx.AsyncBaseTransport | None] = {}
    for scheme, proxy in getproxies().items():
        if scheme in ("http", "https", "all"):
            transport = _WithSecrets(httpx.AsyncHTTPTransport(verify=tls(), proxy=proxy))
            mounts[f"{scheme}://"] = transport
    for local in ("localhost", "127.0.0.1"):
        if mounts and proxy_bypass(local):
            mounts[f"all://{local}"] = _WithSecrets(httpx.AsyncHTTPTransport(verify=tls()))
    for host in (getproxies().get("no") or "").split(","):
        if mounts and host.strip():
            mounts[f"all://*{host.strip()}" if host.strip().startswith(".") else f"all://{host.strip()}"] = None
    return mounts


# --- responses that are errors


def refused(answer: HttpResponse, service: str, key_from: str, key: str = "") -> NoReturn:
    """Raise the error of a response with a status of 300 or more: ToolError where the query is at fault, else
    ProviderError."""
    status, words = answer.status, said(answer, key)
    told = f": {words}" if words else ""
    if status in (401, 403):  # without its message: some services repeat a part of the key
        hint = f"refuses the key in {key_from}" if key_from else "refuses access"
        raise ProviderError(f"{service} {hint} ({status})", retriable=False, provider=service)
    if status == 429:
        raise ProviderError(
            f"{service}: too many requests (429){told}", retry_after_s=retry_after(answer), provider=service
        )
    if status in (402, 432, 433):
        raise ProviderError(f"{service}: the account is exhausted ({status}){told}", retriable=False, provider=service)
    if status in (400, 413, 414, 422):
        raise ToolError(f"{service} refuses the query ({status}){told}")
    if status >= 500 or status == 408:
        raise ProviderError(f"{service} failed ({status}){told}", retry_after_s=retry_after(answer), provider=service)
    raise ProviderError(
        f"{service}: unexpected status {status}{told}; is the URL right?", retriable=False, provider=service
    )


def retry_after(answer: HttpResponse) -> float | None:
    """Seconds in the header Retry-After (a number or a date, RFC 9110); None without one."""
    given = answer.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        from datetime import UTC, datetime

        return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def said(answer: HttpResponse, key: str = "") -> str:
    """The service's error message, shortened, on one line and without the key; "" where it sent no JSON."""
    try:
        found = _words(answer.value)
    except ValueError:
        return ""
    found = " ".join(found.split())
    if key:
        found = found.replace(key, KEY)
    return found if len(found) <= MOST_SAID else found[: MOST_SAID - 1] + "…"


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for name in ("message", "detail", "error", "error_message", "description"):
            if value.get(name):
                return _words(value[name])
    return ""
