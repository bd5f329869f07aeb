"""Runs a server until it is told to end: then running answers end, new ones are refused, and the process exits.

Knows uvicorn and signals. Refuses to know what is answered.
"""

import socket
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from arpo.agent.admission import Admission
from arpo.errors import ConfigError
from arpo.http.serving import HOSTS, is_this_machine, listening_at


class GracefulServer(uvicorn.Server):
    """SIGTERM or Ctrl-C: no new requests; when the last answer is whole, or after `drain_s`, the server ends. A second
    signal ends it at once."""

    def __init__(self, app: Starlette, admission: Admission, drain_s: float) -> None:
        quiet = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet))  # type: ignore[arg-type]
        self.admission, self.drain_s = admission, drain_s
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._ends_at is None:
            self.admission.draining = True
            self._ends_at = time.monotonic() + self.drain_s
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._ends_at is not None and (self.admission.idle or time.monotonic() > self._ends_at):
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int, *, has_key: bool) -> socket.socket:
    """A socket for a server. Raises ConfigError where other machines could reach one without a key."""
    if not has_key and not is_this_machine(host) and host not in HOSTS:
        hint = "Name the environment variable that holds one: --key-env ARPO_SERVE_KEY"
        raise ConfigError("a server for other machines needs a key", where="--host", value=host, hint=hint)
    return listening_at(host, port)
