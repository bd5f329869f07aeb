"""vLLM's servers as actors of Ray, each in a bundle of a placement group: all GPUs of a server are of one node.

An actor holds one `arpo.engines.vllm.launch:Launcher` on its node. A server that ends is started again there; an actor
that is lost, on a node that has room, and its server has another address then. Knows Ray. Refuses to know what servers
are asked.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from arpo.cluster.placement import bundle, reserve
from arpo.engines.vllm.launch import GRACE_S, Launcher, wait_s
from arpo.engines.vllm.versions import Environment
from arpo.errors import ConfigError, first_line


@dataclass(slots=True)
class Placed:
    """A server: its address, and the actor that holds it."""

    url: str
    actor: Any
    number: int
    starts: int = 0
    next_start: float = 0.0  # monotonic: not before


class RayServers:
    """Room for `count` servers with vLLM's `options`, reserved and told. As the `launch` of
    `arpo.engines.vllm.engine:VllmEngine.build` it makes what starts them. `folder`: the run's, on storage that all
    nodes share, with new weights in `weights` and what servers say in `logs`."""

    def __init__(
        self, count: int, options: Mapping[str, Any], *, gpu: bool, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.count = count
        self.gpus = int(gpu) * prod(options.get(f"{name}_parallel_size", 1) for name in ("tensor", "pipeline"))
        self.weights, self.logs = folder.absolute() / "weights", folder.absolute() / "logs"
        self.group = reserve(count, bundle(self.gpus), "server", where="engine.vllm.replicas", tell=tell)

    def __call__(
        self, python: str, arguments: Mapping[str, Any], environment: Mapping[str, str], devices: Sequence[Any]
    ) -> "RayLauncher":
        return RayLauncher(self, python, dict(arguments), dict(environment))

    def close(self) -> None:
        import ray

        ray.util.remove_placement_group(self.group)  # ends its actors


class RayLauncher:
    """See `arpo.engines.vllm.launch:Launcher`, whose place it takes."""

    def __init__(
        self, room: RayServers, python: str, arguments: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        import ray

        self.key = secrets.token_urlsafe(24)
        self._room, self._about = room, (python, arguments, environment, self.key)
        actors = [self._actor(number) for number in range(room.count)]
        urls = ray.get([actor.url.remote() for actor in actors])
        self.servers = [Placed(url, actor, n) for n, (url, actor) in enumerate(zip(urls, actors, strict=True))]

    def _actor(self, number: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

        made = ray.remote(ServerProcess).options(
            num_cpus=1,
            num_gpus=self._room.gpus,
            max_restarts=0,
            scheduling_strategy=In(self._room.group, placement_group_bundle_index=number),
        )
        return made.remote(self._room.logs / f"server-{number}.log", *self._about)

    async def start(self, folder: Path) -> None:
        """Start every server with the model in `folder` and wait until all are healthy. Raises ConfigError with the end
        of its log for one that does not start."""
        import ray

        try:
            await asyncio.gather(*(_result(server.actor.start.remote(folder)) for server in self.servers))
        except ray.exceptions.RayError as error:
            problem = f"a vLLM server was lost while it started: {first_line(error)}"
            raise ConfigError(problem, where="engine.vllm", hint=f"What it said stands in {self._room.logs}") from error

    async def revive(self, url: str, folder: Callable[[], Awaitable[Path]]) -> str | None:
        """Start the server at `url` again if it has ended, each time after a longer wait, with the model that `folder`
        gives. Returns the address at which it is going to be, None where it runs."""
        import ray

        server = self._at(url)
        if time.monotonic() < server.next_start:
            return url
        try:
            if not await _result(server.actor.ended.remote()):
                return None
        except ray.exceptions.RayError:  # with its node, or alone
            server.actor = self._actor(server.number)
            url = await _result(server.actor.url.remote())
        server.starts += 1
        server.next_start = time.monotonic() + wait_s(server.starts)
        await _result(server.actor.start_again.remote(await folder()))
        server.url = url  # last: until now it is known by the old one
        return url

    def end(self, url: str) -> None:
        """End the server at `url` at once; `revive` starts it again."""
        self._at(url).actor.end.remote()

    async def stop(self) -> None:
        """End every server, and what it started. An actor that does not answer, its node does not either."""
        import ray

        stopping = [asyncio.ensure_future(_result(server.actor.stop.remote())) for server in self.servers]
        await asyncio.wait(stopping, timeout=GRACE_S + 5)
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)
        for server in self.servers:
            ray.kill(server.actor)

    def _at(self, url: str) -> Placed:
        return next(server for server in self.servers if server.url == url)


async def _result(call: Any) -> Any:
    """Of an actor's method. Raises what that raised."""
    import ray

    try:
        return await asyncio.wrap_future(call.future())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


class ServerProcess:
    """One server of vLLM on this node: an actor of Ray."""

    def __init__(
        self, log: Path, python: str, arguments: Mapping[str, Any], environment: Mapping[str, str], key: str
    ) -> None:
        import ray

        host = ray.util.get_node_ip_address()
        self.launcher = Launcher(python, arguments, environment, (None,), host=host, key=key)
        (self.server,) = self.launcher.servers
        log.parent.mkdir(parents=True, exist_ok=True)
        self.server.log = log

    def url(self) -> str:
        return self.server.url

    def start(self, folder: Path) -> None:
        Environment.of(self.launcher.python).check(self.launcher.python)
        asyncio.run(self.launcher.start(folder))

    def start_again(self, folder: Path) -> None:
        self.launcher.start_one(self.server, folder)

    def ended(self) -> bool:
        return self.server.process is None or self.server.process.poll() is not None

    def end(self) -> None:
        self.launcher.end(self.server.url)

    def stop(self) -> None:
        asyncio.run(self.launcher.stop())
