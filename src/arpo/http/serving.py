"""What this project's HTTP servers share: a JSON body of limited size, a socket to listen at, and who is at this
machine."""

import errno
import socket
from typing import Any

from starlette.requests import Request

from arpo.errors import ConfigError
from arpo.foreign import loads

HOSTS = ("127.0.0.1", "localhost", "[::1]")  # any port: ssh may forward another


class BadRequest(ValueError):
    """A mistake in the client's request. The message goes back to the client."""


async def json_body(request: Request, most_bytes: int, *, empty: Any = None) -> Any:
    """The body as a JSON value; `empty`, where it is given, for no body. Raises BadRequest, or starlette's
    ClientDisconnect."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > most_bytes:
            raise BadRequest(f"a request may have at most {most_bytes:,} bytes")
    if not content and empty is not None:
        return empty
    try:
        return loads(content)
    except ValueError as error:
        raise BadRequest(f"not JSON: {error}") from error


def listening_at(host: str, port: int) -> socket.socket:
    """A socket that listens at `port`, or at any free one for 0, so that a client may connect before the server runs.
    Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"this machine knows no such host ({error.strerror})", where="--host", value=host) from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        message = f"cannot listen at {host}:{port} ({error.strerror})"
        if error.errno == errno.EADDRNOTAVAIL:
            hint = "127.0.0.1, or 0.0.0.0 for other machines"
            raise ConfigError(message, where="--host", value=host, hint=hint) from error
        raise ConfigError(message, where="--port", value=port, hint="Another one, or 0 for any free port") from error
    return listening


def is_this_machine(host: str) -> bool:
    """True if a Host header names this machine, with or without a port. A server that checks it cannot be reached by a
    web page under a name that only resolves to this machine."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return name.lower() in HOSTS and (not port or port.isdecimal())
