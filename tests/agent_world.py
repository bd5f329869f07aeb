"""A deployed agent of scripted turns, and its server in a thread."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx
from openai import OpenAI

from arpo.agent.deployed import DeployedAgent
from arpo.agent.listening import GracefulServer, listen
from arpo.agent.server import AgentServer, ServeLimits
from arpo.assembly.components import Components
from arpo.engines.base import EngineBase, EngineWrapper
from arpo.engines.scripted import Play
from arpo.recipe.run import RunConfig
from small_world import SIZES, agent, right


def deployed(
    tokenizer: Any, play: Play, *tools: Any, run: dict[str, Any] | None = None, **values: Any
) -> DeployedAgent:
    """`values`: of `small_world.agent`; `run`: other parts of the recipe."""
    recipe = {"data": {"train": {"source": "atlas"}}, "rollout": {}, **(run or {})}
    recipe["rollout"] = {"leaves": 4, "roots": 2, "rule": "paper", **SIZES, **recipe["rollout"]}
    components = Components(
        run=RunConfig(**recipe),
        agent=agent(tokenizer, play, *tools, **values),
        reward=right,
        model=None,
        tokenizer=tokenizer,
        dtype=cast(Any, None),
    )
    return DeployedAgent(components)


@dataclass
class Running:
    """A server in a thread of its own, where it is reached, and its parts."""

    url: str
    server: AgentServer
    listening: GracefulServer
    thread: threading.Thread

    def client(self, **values: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **values})

    def end(self) -> None:
        """As SIGTERM does."""
        self.listening.handle_exit(signal.SIGTERM, None)


@contextmanager
def served(deployed: DeployedAgent, **limits: Any) -> Iterator[Running]:
    """The agent behind HTTP; it ends with the block."""
    server = AgentServer(deployed, ServeLimits(**{"timeout_s": 60, **limits}))
    listening = GracefulServer(server.app, server.admission, server.limits.drain_s, server.start)
    with listen("127.0.0.1", 0, has_key=True) as socket:
        address = f"http://127.0.0.1:{socket.getsockname()[1]}"
        thread = threading.Thread(target=listening.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        try:
            yield Running(address, server, listening, thread)
        finally:
            listening.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def serve_command(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """`arpo serve` in a process of its own, once it is healthy, and where it is reached."""
    process = subprocess.Popen(
        [sys.executable, "-m", "arpo", "serve", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"at (http://\S+)/v1", line):
            while not _healthy(found[1]):
                assert process.poll() is None
                time.sleep(0.05)
            return process, found[1]
    raise AssertionError(process.wait())


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


class Gate(EngineWrapper):
    """An engine that begins a turn when it is let, if `holds` says so of its prompt: `started` counts, `cancelled`
    too."""

    def __init__(self, engine: EngineBase, holds: Callable[[Any], object] = lambda prompt: True) -> None:
        super().__init__(engine)
        self.holds = holds
        self.open = threading.Event()
        self.started = self.cancelled = 0

    async def sample(self, prompt: Any, params: Any) -> AsyncIterator[Any]:
        self.started += 1
        try:
            while self.holds(prompt) and not self.open.is_set():  # noqa: ASYNC110  set in another thread
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        async for chunk in self.engine.sample(prompt, params):
            yield chunk


def gated(
    deployed: DeployedAgent, holds: Callable[[Any], object] = lambda prompt: True, kind: type[Gate] = Gate
) -> Gate:
    """Put a gate before the engine of `deployed`."""
    components = cast(Components, deployed.components)
    gate = kind(components.agent.engine, holds)
    deployed.components = replace(components, agent=replace(components.agent, engine=gate))
    return gate


def until(true: Callable[[], object]) -> None:
    """Wait for an event of another thread."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)
