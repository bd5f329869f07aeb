"""Runs in vLLM's server: nobody may ask it anything but the learner that started it.

Its developer routes load weights and call methods by name, and it listens where every user of the machine, and every
web page that one of them opens, can reach it. vLLM's own key guards other routes. Standard library alone, as arpo need
not be installed there.
"""

import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

KEY = "ARPO_VLLM_KEY"  # the environment variable that holds the key: a command line is everybody's to read
OPEN = "/health"
Messages = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class BearerGuard:
    """ASGI middleware."""

    def __init__(self, app: Callable[[dict[str, Any], Messages, Send], Awaitable[None]]) -> None:
        self._app, self._wanted = app, f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Messages, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and scope["path"] == OPEN) or self._is_ours(scope):
            await self._app(scope, receive, send)
        elif kind == "http":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_ours(self, scope: dict[str, Any]) -> bool:
        return any(
            name == b"authorization" and secrets.compare_digest(value, self._wanted) for name, value in scope["headers"]
        )
