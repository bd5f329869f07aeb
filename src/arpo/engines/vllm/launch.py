"""Starts vLLM servers in an environment of their own, and ends them with the run, however it ends.

Knows processes and command lines. What the servers say goes to a file each; a server that dies is started again.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from arpo.engines.vllm.guard import KEY
from arpo.errors import ConfigError

LOOPBACK = "127.0.0.1"
GRACE_S = 15.0  # between asking a server to end and ending it
CHILD = Path(__file__).with_name("child.py")
COPIES = {"guard": "arpo_vllm_guard", "answers": "arpo_vllm_answers"}
"""Files beside this one, and the modules as which the servers, which need not have arpo, find copies of them."""


@dataclass(slots=True)
class Started:
    url: str
    devices: str | None
    log: Path = Path()
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    next_start: float = 0.0  # monotonic: not before


@dataclass
class Launcher:
    """python: the interpreter of vLLM's environment. arguments: vLLM's engine arguments, without the model. host: the
    address of this machine at which the servers listen."""

    python: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str]
    devices: Sequence[str | None]
    start_s: float = 900.0
    host: str = LOOPBACK
    servers: list[Started] = field(default_factory=list)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)  # that the servers ask for
    _home: Path | None = None

    def __post_init__(self) -> None:
        self.servers = [Started(f"http://{self.host}:{_free_port(self.host)}", devices) for devices in self.devices]

    async def start(self, folder: Path) -> None:
        """Start every server with the model in `folder` and wait until all are healthy. Raises ConfigError with the end
        of its log for one that does not start."""
        for server in self.servers:
            self.start_one(server, folder)
        end = time.monotonic() + self.start_s
        async with httpx.AsyncClient(trust_env=False) as client:
            for server in self.servers:
                while not await _healthy(client, server.url):
                    assert server.process is not None
                    if (status := server.process.poll()) is not None:
                        raise ConfigError(
                            f"a vLLM server ended with {status}: {_end(server.log)}",
                            where="engine.vllm",
                            hint=_hint(server),
                        )
                    if time.monotonic() > end:
                        what = f"a vLLM server is not ready after {self.start_s:g} s: {_end(server.log)}"
                        raise ConfigError(what, where="engine.vllm", hint=_hint(server))
                    await asyncio.sleep(0.25)

    async def revive(self, url: str, folder: Callable[[], Awaitable[Path]]) -> str | None:
        """Start the server at `url` again if it has ended, each time after a longer wait, with the model that `folder`
        gives. Returns the address at which it is going to be, None where it runs."""
        server = next(server for server in self.servers if server.url == url)
        if server.process is not None and server.process.poll() is None:
            return None
        if time.monotonic() >= server.next_start:
            self.start_one(server, await folder())
        return url

    def end(self, url: str) -> None:
        """End the server at `url` at once; `revive` starts it again."""
        server = next(server for server in self.servers if server.url == url)
        if server.process is not None:
            _close(server.process)
            _kill(server.process)

    async def stop(self) -> None:
        """End every server, and what it started."""
        running = [server.process for server in self.servers if server.process is not None]
        for process in running:
            _close(process)
        await asyncio.gather(*(asyncio.to_thread(_end_group, process) for process in running))
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def start_one(self, server: Started, folder: Path) -> None:
        """Start a server, without waiting for it."""
        self.end(server.url)
        home = self._home = self._home or _home()
        if not server.log.name:
            server.log = home / f"server-{self.servers.index(server)}.log"
        command = [self.python, "-c", CHILD.read_text(), *self.flags(server.url, folder)]
        environment = {**os.environ, **self.environment, "VLLM_SERVER_DEV_MODE": "1", KEY: self.key}
        environment["PYTHONSAFEPATH"] = "1"  # nothing that lies in the current folder is imported
        environment.pop("VLLM_API_KEY", None)  # somebody else's: it would ask for that one too
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
        if server.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = server.devices
        with server.log.open("ab") as log:
            server.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=home,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the run, which ends them when it has saved
            )
        server.starts += 1
        server.next_start = time.monotonic() + wait_s(server.starts)

    def flags(self, url: str, folder: Path) -> list[str]:
        """The server's command line."""
        return [
            "--model",
            str(folder),
            "--host",
            self.host,
            "--port",
            url.rpartition(":")[2],
            *FLAGS,
            *as_flags(self.arguments),
        ]


FLAGS = (
    *("--middleware", f"{COPIES['answers']}.CompactAnswers"),
    *("--middleware", f"{COPIES['guard']}.BearerGuard"),
    *("--served-model-name", "arpo"),
    *("--uvicorn-log-level", "warning"),
    "--disable-uvicorn-access-log",
    "--enable-scale-out",
    "--enable-prompt-tokens-details",
)


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as command line flags."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            flags += [f"--{flag}", *map(str, value)]
        elif value is not None:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return flags


def wait_s(starts: int) -> float:
    """Seconds until a server that was started so often may be started again."""
    return min(300.0, 5.0 * 2**starts)


def _free_port(host: str) -> int:
    with socket.socket() as listening:
        listening.bind((host, 0))
        return int(listening.getsockname()[1])


def _home() -> Path:
    """A folder of the servers, with the modules that they load."""
    home = Path(tempfile.mkdtemp(prefix="arpo-vllm-"))
    for name, module in COPIES.items():
        shutil.copyfile(CHILD.with_name(f"{name}.py"), home / f"{module}.py")
    return home


async def _healthy(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/health", timeout=5)).status_code == 200
    except httpx.HTTPError:
        return False


def _end(log: Path) -> str:
    """What a log ends with: its last error, in one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or ["it said nothing"])[-1][-300:]


def _hint(server: Started) -> str:
    return f"All that it said stands in {server.log}"


def _close(process: "subprocess.Popen[bytes]") -> None:
    """What a server takes as the sign to end (see `child.py`)."""
    if process.stdin is not None:
        process.stdin.close()


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
