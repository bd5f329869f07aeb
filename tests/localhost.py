"""A web server on this machine for tests: it answers as it is told and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Asked:
    """A request as it came over the wire."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What comes back. `length` claims another size than `content` has; `wait_s` lets the client wait for the first
    byte; `drip_s` sends a byte at a time."""

    content: bytes | str | dict[str, Any] | list[Any] = b""
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    wait_s: float = 0.0
    drip_s: float = 0.0

    def raw(self) -> bytes:
        content = self.content
        return (
            content
            if isinstance(content, bytes)
            else content.encode()
            if isinstance(content, str)
            else json.dumps(content).encode()
        )


class Site:
    """`url`, and the requests that came."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.asked: list[Asked] = []


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what many tests are about."""


@contextmanager
def serving(answer: Callable[[Asked], Reply]) -> Iterator[Site]:
    """A server whose answers `answer` gives; ends with the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, parts.path, query, headers, self.rfile.read(size))
            site.asked.append(asked)
            self._send(answer(asked))

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.wait_s)
            raw = reply.raw()
            self.send_response(reply.status)
            for name, value in {"Content-Type": reply.kind, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw) if reply.length is None else reply.length))
            self.end_headers()
            try:
                for at in range(0, len(raw), 1) if reply.drip_s else [0]:
                    self.wfile.write(raw[at : at + 1] if reply.drip_s else raw)
                    time.sleep(reply.drip_s)
            except OSError:  # the client had enough
                self.close_connection = True
            if reply.length is not None:
                self.close_connection = True

        do_GET = do_POST = _handle

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    site = Site(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
