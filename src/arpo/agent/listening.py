"""Runs a server until it is told to end: then running answers end, new ones are refused, and the process exits.

Knows uvicorn and signals. Refuses to know what is answered.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import HANDLED_SIGNALS

from arpo.agent.admission import Admission
from arpo.errors import ConfigError
from arpo.http.serving import HOSTS, is_this_machine, listening_at


class GracefulServer(uvicorn.Server):
    """SIGTERM or Ctrl-C: no new requests; when the last answer is whole, or after `drain_s`, the server ends. A second
    signal ends it at once. `start` is awaited before the first request is read."""

    def __init__(
        self, app: Starlette, admission: Admission, drain_s: float, start: Callable[[], Awaitable[None]]
    ) -> None:
        quiet = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=5, **quiet))  # type: ignore[arg-type]
        self.admission, self.drain_s, self._start = admission, drain_s, start
        self._ends_at: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises KeyboardInterrupt where a signal comes before the start is done."""
        with ended_by_signals():
            await self._start()
        await super().serve(sockets)

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


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM or Ctrl-C cancels this task within the block, which then raises KeyboardInterrupt."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    heard = HANDLED_SIGNALS if task is not None and threading.current_thread() is threading.main_thread() else ()
    for number in heard:
        loop.add_signal_handler(number, task.cancel)  # type: ignore[union-attr]
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


def listen(host: str, port: int, *, has_key: bool) -> socket.socket:
    """A socket for a server. Raises ConfigError where other machines could reach one without a key."""
    if not has_key and not is_this_machine(host) and host not in HOSTS:
        hint = "Name the environment variable that holds one: --key-env ARPO_SERVE_KEY"
        raise ConfigError("a server for other machines needs a key", where="--host", value=host, hint=hint)
    return listening_at(host, port)
