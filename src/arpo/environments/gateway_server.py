"""The gateway's HTTP side: outside agents take trajectories, ask for turns in them, and end them.

    POST /v1/rollouts                          take a task: {id, base_url, task}; 204 where none waits
    GET  /v1/rollouts/ID                       the task again
    POST /v1/rollouts/ID/chat/completions      a turn (or /v1/chat/completions with the header X-Arpo-Rollout: ID)
    POST /v1/rollouts/ID/end                   the end: {reward, result}, both optional

Knows HTTP, and processes of agents. Refuses to know what requests mean to a trajectory.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from arpo.chat.openai_wire import (
    ChatRequest,
    Json,
    choice_json,
    chunk_json,
    completion_json,
    error_json,
    new_id,
    parse_request,
    sse,
    usage_json,
)
from arpo.http.serving import BadRequest, is_this_machine, json_body, listening_at
from arpo.secrets import without_secrets
from arpo.tasks import Task
from arpo.terminal_safe import print_line
from arpo.tools.mcp.process import dies_with_parent

T = TypeVar("T")
MODEL = "arpo"
POLL_S = 20.0  # that a request for a task waits for one
MOST_BYTES = 64 << 20  # of a request
MOST_OPEN = 8  # requests of one trajectory: it goes on from turn to turn, and each may be large
MOST_INLINE = 100_000  # bytes of a task in an environment variable; a longer one is fetched
TAIL = 2000  # characters of an agent's output that an error shows


class NoTrajectoryError(Exception):
    """There is none of this name (404), it has ended (410), or whoever asks may not (401, 403)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, eq=False)
class AgentRequest:
    """A request for a turn; `answer` is the assistant's message, or None once the trajectory has ended."""

    request: ChatRequest
    answer: "asyncio.Future[Json | None]"


@dataclass(frozen=True, slots=True)
class AgentEnd:
    """The agent is done. `failure`: why it broke down; "" where it did not."""

    reward: float = 0.0
    result: Any = None
    failure: str = ""


@dataclass(eq=False, slots=True)
class Trajectory:
    """One trajectory as its agent sees it. Lives on the server's loop."""

    id: str
    task: dict[str, Any]
    base_url: str
    inbox: "asyncio.Queue[AgentRequest | AgentEnd]" = field(default_factory=asyncio.Queue)
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    last: AgentRequest | None = None
    asked: "set[asyncio.Future[Json | None]]" = field(default_factory=set)  # answers that requests wait for
    ended: bool = False  # the agent has said so
    closed: bool = False
    process: asyncio.subprocess.Process | None = None
    watch: "asyncio.Task[None] | None" = None

    async def ask(self, request: ChatRequest, again: bool) -> Json:
        """The answer to a request; `again`: the client repeats one whose answer it did not get."""
        if self.closed or self.ended:
            raise NoTrajectoryError(410, "this trajectory has ended")
        if len(self.asked) >= MOST_OPEN:
            raise NoTrajectoryError(429, f"{MOST_OPEN} requests of this trajectory wait for their answers")
        self.taken.set()
        asked = self.last
        if not (again and asked is not None and asked.request == request):
            asked = self.last = AgentRequest(request, asyncio.get_running_loop().create_future())
            self.inbox.put_nowait(asked)
        self.asked.add(asked.answer)
        asked.answer.add_done_callback(self.asked.discard)
        answer = await asyncio.shield(asked.answer)
        if answer is None:
            raise NoTrajectoryError(410, "this trajectory has ended")
        return answer

    async def next(self, deadline_s: float) -> AgentRequest | AgentEnd:
        """What the agent does next. Raises TimeoutError."""
        await self.taken.wait()
        async with asyncio.timeout(deadline_s):
            return await self.inbox.get()

    async def close(self) -> None:
        """No request is answered any more, and the agent's process ends."""
        self.closed = True
        for answer in list(self.asked):
            if not answer.done():
                answer.set_result(None)
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()


class GatewayServer:
    """The server of one address, on an event loop in a daemon thread. `key`: what agents must present; "": nothing."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self.host, self.key = host, key
        self.trajectories: dict[str, Trajectory] = {}
        self.waiting: asyncio.Queue[Trajectory] = asyncio.Queue()
        self.announced = False
        self._socket = listening_at(host, port)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}/v1"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._serve, name="arpo-gateway", daemon=True).start()

    def _serve(self) -> None:
        config = uvicorn.Config(self._application(), log_level="error", access_log=False, ws="none", lifespan="off")
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(uvicorn.Server(config).serve(sockets=[self._socket]))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` on the server's loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self, trajectory: Trajectory) -> None:
        self.trajectories.pop(trajectory.id, None)
        asyncio.run_coroutine_threadsafe(trajectory.close(), self._loop).result()

    async def begin(self, task: Task, command: Sequence[str]) -> Trajectory:
        """A trajectory of `task` for an agent of its own, started by `command`, or else for the next that asks."""
        id_ = secrets.token_urlsafe(16)
        told = {"id": task.id, "messages": [dict(message) for message in task.messages], "setup": task.setup}
        trajectory = self.trajectories[id_] = Trajectory(id_, told, f"{self.url}/rollouts/{id_}")
        if command:
            await self._start(trajectory, command)
        else:
            self.waiting.put_nowait(trajectory)
            if not self.announced:
                self.announced = True
                print_line(f"the gateway hands out tasks at {self.url}/rollouts", sys.stderr)
        return trajectory

    async def _start(self, trajectory: Trajectory, command: Sequence[str]) -> None:
        written = json.dumps(trajectory.task)
        given = {"OPENAI_BASE_URL": trajectory.base_url, "OPENAI_API_KEY": self.key or MODEL}
        if len(written) <= MOST_INLINE:
            given["ARPO_TASK"] = written
        output = tempfile.TemporaryFile()  # noqa: SIM115  closed with its process
        trajectory.process = process = await asyncio.create_subprocess_exec(
            *dies_with_parent(command, os.getpid()),
            env={**os.environ, **given},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        trajectory.taken.set()

        async def watch() -> None:
            with output:
                code = await process.wait()
                output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
                said = without_secrets(output.read().decode("utf-8", "replace").strip())
            trajectory.inbox.put_nowait(AgentEnd(failure=f"its process ended with code {code}: {said}" if code else ""))

        trajectory.watch = asyncio.create_task(watch())

    # --- HTTP

    def _application(self) -> Starlette:
        routes = [
            Route("/v1/rollouts", self._take, methods=["POST"]),
            Route("/v1/rollouts/{id}", self._task),
            Route("/v1/rollouts/{id}/end", self._end, methods=["POST"]),
            Route("/v1/rollouts/{id}/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/rollouts/{id}/models", self._models),
        ]
        return Starlette(
            routes=routes, exception_handlers={NoTrajectoryError: _refused, BadRequest: _refused, 404: _not_here}
        )

    def _check_key(self, request: Request) -> None:
        """A server without a key answers programs at its own machine alone, and no web page that is open there."""
        here = is_this_machine(request.headers.get("host", "")) and "sec-fetch-site" not in request.headers
        if not self.key and not here:
            raise NoTrajectoryError(403, "this gateway has no key and answers programs at its own machine alone")
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and not secrets.compare_digest(given.encode(), self.key.encode()):
            raise NoTrajectoryError(401, "this gateway needs its key (Authorization: Bearer ...)")

    def _named(self, request: Request) -> Trajectory:
        self._check_key(request)
        id_ = request.path_params.get("id") or request.headers.get("x-arpo-rollout", "")
        if id_ not in self.trajectories:
            hint = "take one by POST /v1/rollouts, and name it by path or by the header X-Arpo-Rollout"
            raise NoTrajectoryError(410 if id_ else 404, f"there is no trajectory {id_!r}, or it has ended: {hint}")
        return self.trajectories[id_]

    async def _take(self, request: Request) -> Response:
        self._check_key(request)
        try:
            async with asyncio.timeout(POLL_S):
                trajectory = await self.waiting.get()
                while trajectory.closed:
                    trajectory = await self.waiting.get()
            if await request.is_disconnected():  # nobody would work on it
                self.waiting.put_nowait(trajectory)
                return Response(status_code=499)
        except TimeoutError:
            return Response(status_code=204)
        trajectory.taken.set()
        return JSONResponse({"id": trajectory.id, "base_url": trajectory.base_url, "task": trajectory.task})

    async def _task(self, request: Request) -> Response:
        return JSONResponse(self._named(request).task)

    async def _end(self, request: Request) -> Response:
        trajectory = self._named(request)
        try:
            said = await json_body(request, MOST_BYTES, empty={})
            end = AgentEnd(reward=float(said.get("reward") or 0.0), result=said.get("result"))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise BadRequest(f"an end is an object with a number `reward` and a `result`: {error}") from error
        if trajectory.ended:
            raise NoTrajectoryError(410, "this trajectory has ended")
        trajectory.ended = True
        trajectory.inbox.put_nowait(end)
        return JSONResponse({"id": trajectory.id, "ended": True})

    async def _complete(self, request: Request) -> Response:
        trajectory, asked = self._named(request), parse_request(await json_body(request, MOST_BYTES))
        if asked.n != 1:
            raise BadRequest(f"n: a trajectory has one answer to a request (got {asked.n})")
        again = request.headers.get("x-stainless-retry-count", "0") != "0"
        message = await trajectory.ask(asked, again)
        calls, id_ = message.get("tool_calls", ()), new_id()
        finish = "tool_calls" if calls else "stop"
        if not asked.stream:
            choice = choice_json(0, finish, message=message)
            return JSONResponse(completion_json(id_, MODEL, [choice], usage_json(0, 0)))
        deltas = [{"role": "assistant", "content": message["content"] or ""}]
        deltas += [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(calls)]
        choices = [*(choice_json(0, None, delta=delta) for delta in deltas), choice_json(0, finish)]
        events = [*(sse(chunk_json(id_, MODEL, [choice])) for choice in choices), sse("[DONE]")]
        return StreamingResponse(iter(events), media_type="text/event-stream")

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": MODEL}]})


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, NoTrajectoryError) else 400
    return JSONResponse(error_json(str(error), "invalid_request_error"), status_code=status)


async def _not_here(request: Request, error: Exception) -> Response:
    return await _refused(request, NoTrajectoryError(404, f"nothing is served at {request.url.path}"))


@lru_cache(maxsize=8)
def server_at(host: str, port: int, key: str) -> GatewayServer:
    """The server there, which all episodes of this process share. Raises ConfigError."""
    return GatewayServer(host, port, key)
