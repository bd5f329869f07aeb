"""Serves the viewer over HTTP, only for the person at this machine.

A test checks each of these rules: The server listens on 127.0.0.1. It refuses a request whose Host names another
machine (so that no web page can reach it under its own name), a request without the token, and a request that changes
anything. Its answers are JSON from `Library` or one of three fixed files, so it never opens a path from a request. The
page may load nothing from elsewhere and run only its own script.
"""

import asyncio
import hashlib
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arpo.errors import ArpoError, ConfigError
from arpo.http.serving import is_this_machine, listening_at
from arpo.terminal_safe import print_line
from arpo.view.library import Library, NotHereError, as_text
from arpo.view.page import ViewerPage, built_page

PORT = 8470  # used if it is free, so that a forwarded port stays the same
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class TokenGuard:
    """Passes allowed requests to `app`, and sets the security headers of every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie_of(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000, "reason": "the viewer has no websockets"})
            return
        refused = self._refusal(scope)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await (refused or self._app)(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        request = Request(scope)
        if not is_this_machine(request.headers.get("host", "")):
            return _error(
                403, "this server answers the person at its own machine alone (Host must be 127.0.0.1 or localhost)"
            )
        if request.method not in ("GET", "HEAD"):
            return _error(405, "the viewer reads only: GET")
        if request.headers.get("sec-fetch-site", "none") == "cross-site" and request.url.path != "/":
            return _error(403, "another page asks for this")
        needs = request.url.path == "/" or request.url.path.startswith("/api")
        if needs and not any(_equal(given, self._token) for given in self._tokens(request)):
            return _error(401, "open the address that `arpo view` printed: it holds a token")
        return None

    def _tokens(self, request: Request) -> list[str]:
        """Every token in a request: a wrong one must not hide the right one."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return [bearer, request.cookies.get(self._cookie, ""), request.query_params.get("token", "")]


def asset_routes(page: ViewerPage) -> list[Route]:
    """The routes of the page's script and style sheet."""

    async def script(request: Request) -> Response:
        return Response(page.script, media_type="text/javascript; charset=utf-8")

    async def style(request: Request) -> Response:
        return Response(page.style, media_type="text/css; charset=utf-8")

    return [Route(f"/{page.script_at}", script), Route(f"/{page.style_at}", style)]


def application(library: Library, token: str) -> Starlette:
    """The web application over `library`. Clients with `token` may read."""
    page = built_page()

    async def index(request: Request) -> Response:
        response = Response(page.html, media_type="text/html; charset=utf-8")
        response.set_cookie(cookie_of(token), token, httponly=True, samesite="strict", path="/")
        return response

    async def api(request: Request) -> Response:
        asked = {
            name: value for name, value in request.query_params.items() if name != "token"
        }  # the guard checks the token
        return await run_in_threadpool(_answer, library, request.url.path, asked)

    routes = [
        Route("/", index),
        *asset_routes(page),
        Route("/api/{rest:path}", api),
    ]
    app = Starlette(
        routes=routes, exception_handlers={404: lambda request, error: _error(404, "nothing is served here")}
    )
    app.add_middleware(TokenGuard, token=token)
    return app


def serve(library: Library, *, port: int | None = None, browser: bool = True) -> None:
    """Serve until interrupted. With `port` None it uses the default port, or any free one if that is taken. Raises
    ConfigError if the requested port is taken."""
    import uvicorn

    token = secrets.token_urlsafe(24)
    app = application(library, token)
    listening = _listen(port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/?token={token}"
    print_line(f"{len(library.runs)} {'run' if len(library.runs) == 1 else 'runs'}: {address}\nCtrl-C ends.")
    quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False, "ws": "none"}
    logging.getLogger("uvicorn.error").addFilter(_no_cancellation)
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **quiet))
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with listening, library:
        server.run(sockets=[listening])


def _no_cancellation(record: logging.LogRecord) -> bool:
    """False for the traceback of an answer that Ctrl-C ended because its client does not read it."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def cookie_of(token: str) -> str:
    """The cookie's name. Cookies ignore ports, so every server has its own name and several can be open at once."""
    return f"arpo_view_{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def _listen(port: int | None) -> socket.socket:
    """A socket on 127.0.0.1 that accepts connections at once, since the browser may connect before the server runs."""
    if port is None:
        try:
            return listening_at("127.0.0.1", PORT)
        except ConfigError:
            port = 0
    return listening_at("127.0.0.1", port)


def _answer(library: Library, path: str, query: Mapping[str, str]) -> Response:
    try:
        return Response(as_text(library.answer(path, query)), media_type="application/json")
    except NotHereError as error:
        return _error(404, str(error))
    except ArpoError as error:
        return _error(400, str(error))
    except OSError as error:  # the run is moved or truncated at this moment
        return _error(500, f"{Path(error.filename).name if error.filename else 'a file'}: {error.strerror or error}")


def _error(status: int, text: str) -> Response:
    return Response(as_text({"error": text}), status_code=status, media_type="application/json")


def _equal(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())
