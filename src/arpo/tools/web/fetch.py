"""Fetch a page from the web safely: HTTP alone, public addresses alone, within limits, and where robots.txt allows it.

Each redirect is checked anew. A name is looked up once and the connection goes to that address (with the name in Host
and TLS), so that the checked address is the one reached. Failures are ToolErrors, which the model reads: it chose the
page.
"""

import asyncio
import errno
import re
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from protego import Protego

from arpo.errors import ProviderError, ToolError
from arpo.http.address import networks, resolve
from arpo.http.exchange import ACCEPT_ENCODING, is_packed_as_accepted, tls
from arpo.threads import run_off_loop

AGENT = "arpo"
ROBOTS_BYTES = 500 << 10  # RFC 9309: at least 500 KiB are to be read
ROBOTS_S = 3_600.0  # seconds that a robots.txt is remembered
ROBOTS_KEPT = 512
REDIRECTS = (301, 302, 303, 307, 308)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:(?!\d)", re.IGNORECASE)  # localhost:8080 has none
ACCEPT = "text/html,application/xhtml+xml,application/pdf,text/plain;q=0.9,*/*;q=0.5"


@dataclass(frozen=True, slots=True)
class Fetched:
    url: str  # after redirects
    kind: str  # the media type: text/html
    charset: str  # as the header says; "" where it does not
    content: bytes


@dataclass(frozen=True, slots=True)
class _Hop:
    status: int
    headers: httpx.Headers
    content: bytes


class Fetcher:
    """Fetches pages. `allow_private`: addresses and networks that may be reached though they are not public."""

    def __init__(
        self,
        *,
        most_bytes: int = 5 << 20,
        timeout_s: float = 15.0,
        redirects: int = 5,
        robots: bool = True,
        allow_private: Sequence[str] = (),
    ) -> None:
        self.most_bytes, self.timeout_s, self.redirects, self.robots = most_bytes, timeout_s, redirects, robots
        self._allowed = networks(allow_private)
        self._rules: OrderedDict[str, tuple[float, Protego | None]] = OrderedDict()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    async def fetch(self, url: str) -> Fetched:
        """The page at `url`. Raises ToolError where it is not to be had, ProviderError where the network is down."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._fetch(_parsed(url))
        except TimeoutError:
            raise ToolError(f"the page took longer than {self.timeout_s:g} s") from None

    async def _fetch(self, url: httpx.URL) -> Fetched:
        for _ in range(self.redirects + 1):
            if self.robots:
                await self._ask_robots(url)
            hop = await self._get(url, self.most_bytes)
            if hop.status in REDIRECTS and "location" in hop.headers:
                url = _joined(url, hop.headers["location"])
                continue
            if hop.status != 200:
                raise ToolError(f"the page answers with status {hop.status}")
            kind, _, rest = hop.headers.get("content-type", "").partition(";")
            charset = rest.partition("charset=")[2].partition(";")[0].strip(" \"'")
            return Fetched(str(url), kind.strip().lower(), charset, hop.content)
        raise ToolError(f"more than {self.redirects} redirects")

    async def _get(self, url: httpx.URL, most_bytes: int, cut: bool = False) -> _Hop:
        """One request to an address that was checked. A body above `most_bytes` is cut where `cut`, else a
        ToolError."""
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await resolve(host, port, self._allowed)
        for last, address in enumerate(addresses, 1 - len(addresses)):
            try:
                return await self._get_from(address, url, most_bytes, cut)
            except httpx.ConnectError as error:
                if last == 0 and _is_ours(error):
                    raise ProviderError("the network cannot be reached", provider="page") from None
                if last == 0:
                    raise ToolError(f"{host} cannot be reached ({_why(error)})") from None
            except httpx.InvalidURL:  # httpx reads where a redirect leads, though it does not follow it
                raise ToolError("the page redirects to what is no URL") from None
            except httpx.HTTPError as error:
                raise ToolError(f"{host} breaks off the connection ({type(error).__name__})") from None
        raise ToolError(f"{host} has no address")

    async def _get_from(self, address: str, url: httpx.URL, most_bytes: int, cut: bool) -> _Hop:
        host = url.netloc.decode("ascii")
        there = httpx.URL(scheme=url.scheme, host=address, port=url.port, raw_path=url.raw_path)
        extensions = {"sni_hostname": url.raw_host.decode("ascii")} if url.scheme == "https" else {}
        client = self._client()
        request = client.build_request("GET", there, headers={"Host": host.rpartition("@")[2]}, extensions=extensions)
        answer = await client.send(request, stream=True)
        try:
            if (said := answer.headers.get("content-length", "")).isdecimal() and int(said) > most_bytes and not cut:
                raise ToolError(f"the page has more than {most_bytes:,} bytes")
            if not is_packed_as_accepted(answer.headers):
                raise ToolError("the page is packed in a way that was not asked for")
            content = bytearray()
            if answer.status_code not in REDIRECTS:
                async for chunk in answer.aiter_bytes():
                    await asyncio.sleep(0)  # chunks of a byte come without a wait between them
                    content += chunk
                    if len(content) > most_bytes:
                        if cut:
                            break
                        raise ToolError(f"the page has more than {most_bytes:,} bytes")
            return _Hop(answer.status_code, answer.headers, bytes(content[:most_bytes]))
        finally:
            await answer.aclose()

    def _client(self) -> httpx.AsyncClient:
        """Connections are not kept: one to an address belongs to the name that it was opened for."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx.AsyncClient(
                verify=tls(),
                trust_env=False,  # a proxy would look names up by itself
                follow_redirects=False,
                timeout=self.timeout_s,
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=0),
                headers={"User-Agent": AGENT, "Accept": ACCEPT, "Accept-Encoding": ACCEPT_ENCODING},
            )
        return self._clients[loop]

    # --- robots.txt (RFC 9309)

    async def _ask_robots(self, url: httpx.URL) -> None:
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        until, rules = self._rules.get(origin, (0.0, None))
        if time.monotonic() >= until:
            rules = await self._robots_of(url)
            self._rules[origin] = (time.monotonic() + ROBOTS_S, rules)
            self._rules.move_to_end(origin)
            while len(self._rules) > ROBOTS_KEPT:
                self._rules.popitem(last=False)
        if rules is not None and not await run_off_loop(rules.can_fetch, str(url), AGENT):
            raise ToolError(f"{url.host} does not want programs to open this page (robots.txt)")

    async def _robots_of(self, url: httpx.URL) -> Protego | None:
        """The rules; None: everything is allowed (there is no file). A server that fails allows nothing, as the RFC
        says."""
        at = url.copy_with(raw_path=b"/robots.txt", fragment=None)
        for _ in range(6):
            hop = await self._get(at, ROBOTS_BYTES, cut=True)
            if hop.status in REDIRECTS and "location" in hop.headers:
                at = _joined(at, hop.headers["location"])
                continue
            if hop.status >= 500:
                raise ToolError(f"{url.host} does not give its robots.txt ({hop.status}): not opened")
            text = hop.content.decode("utf-8", "replace")
            return await run_off_loop(Protego.parse, text) if hop.status == 200 else None
        return None


def _parsed(url: str) -> httpx.URL:
    url = url.strip()
    try:
        parsed = httpx.URL(url if SCHEME.match(url) else f"https://{url}")
    except (httpx.InvalidURL, ValueError) as error:
        raise ToolError(f"not a URL: {error}") from None
    return _checked(parsed)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return _checked(url.join(location))
    except (httpx.InvalidURL, ValueError):
        raise ToolError("the page redirects to what is no URL") from None


def _checked(url: httpx.URL) -> httpx.URL:
    if url.scheme not in ("http", "https"):
        raise ToolError(f"only http and https pages are opened, not {url.scheme or 'this'!r}")
    if not url.raw_host:
        raise ToolError("a URL needs a host: https://en.wikipedia.org/wiki/Lima")
    return url.copy_with(fragment=None, username=None, password=None) if url.userinfo else url.copy_with(fragment=None)


def _why(error: Exception) -> str:
    return "its certificate is not valid" if "CERTIFICATE" in str(error).upper() else "no connection"


def _is_ours(error: BaseException | None) -> bool:
    """True where our own network is down: no page can be reached."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.ENETDOWN):
            return True
        error = error.__cause__ or error.__context__
    return False
