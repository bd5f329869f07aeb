"""`arpo serve`: an agent behind OpenAI's chat completions, for any client that speaks them.

    POST /v1/chat/completions    the agent answers with its own tools, steps streamed as events; a request that brings
                                 `tools`, or names the model NAME/model, gets one turn, and its client runs the calls
    GET /v1/models  /health  /metrics
    /mcp                         the agent as an MCP server

Knows HTTP: keys, limits, time-outs, back-pressure, and how to end. `arpo.agent.deployed` knows the agent and
`arpo.agent.turns` single turns.
"""

import asyncio
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from arpo.agent.admission import Admission, RefusedError
from arpo.agent.deployed import DeployedAgent
from arpo.agent.figures import ServerFigures
from arpo.agent.pick import AgentAnswer
from arpo.agent.protocol import event_json
from arpo.agent.turns import TurnDelta, TurnWriter, WrittenTurn, WrittenTurns
from arpo.assembly.components import Components
from arpo.chat.openai_wire import (
    ChatRequest,
    Json,
    calls_json,
    choice_json,
    chunk_json,
    completion_json,
    error_json,
    message_json,
    new_id,
    parse_request,
    sse,
    usage_json,
)
from arpo.core.tree import StopReason
from arpo.errors import ArpoError, ConfigError, EngineError, FormatError, ToolsStoppedError
from arpo.event_loop import told
from arpo.http.serving import BadRequest, is_this_machine, json_body
from arpo.rollout.watching import ResultsRead, RolloutEvent, TextWritten

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

MOST_BYTES = 4 << 20  # of a request
PING_S = 15.0  # between signs of life in a stream that has nothing to say
Event = RolloutEvent | AgentAnswer | TurnDelta | WrittenTurns
Events = AsyncGenerator[Any, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLimits:
    """key_env: the environment variable with the key that clients send; "": none is asked for. running, waiting: so
    many requests at a time, and so many that wait. timeout_s: of an answer, its wait included. drain_s: how long
    running answers may take when the server ends."""

    key_env: str = ""
    running: int = 64
    waiting: int = 256
    timeout_s: float = 600.0
    drain_s: float = 60.0

    @property
    def key(self) -> str:
        """Raises ConfigError where the variable is empty."""
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        if self.key_env and not key:
            hint = f"Put the key that clients shall send into the environment variable {self.key_env}"
            raise ConfigError("the server needs a key", where="--key-env", value=self.key_env, hint=hint)
        return key


class AgentServer:
    """The web application of one agent: `app`."""

    def __init__(self, agent: DeployedAgent, limits: ServeLimits) -> None:
        self.agent, self.limits, self.key = agent, limits, limits.key
        self.name = agent.run.name
        self.admission = Admission(limits.running, limits.waiting)
        components = agent.components
        self.turns = TurnWriter(components) if isinstance(components, Components) else None
        engine = components.agent.engine if isinstance(components, Components) else None
        self.figures = ServerFigures(self.admission, engine)
        self.mcp: MCPServer | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._guarded(self.complete), methods=["POST"]),
                Route("/v1/models", self._guarded(self.models)),
                Route("/v1/models/{model:path}", self._guarded(self.models)),
                Route("/metrics", self._guarded(self.metrics)),
                Route("/health", self.health),
                *self._mcp_routes(),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.mcp.session_manager.run() if self.mcp is not None else nullcontext():
            yield
        await self.agent.close()

    # --- who may ask

    def refusal(self, request: Request) -> Response | None:
        """The answer to who may not ask; None for who may."""
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and not secrets.compare_digest(sent.encode("utf-8", "replace"), self.key.encode()):
            return _error(401, "the key is missing or wrong: Authorization: Bearer KEY", "invalid_api_key")
        # without a key no web page may reach the server, under whatever name its host resolves to this machine
        if not self.key and not is_this_machine(request.headers.get("host", "")):
            return _error(403, "without a key this server answers its own machine alone", "forbidden")
        return None

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            return self.refusal(request) or await answer(request)

        return guarded

    def _mcp_routes(self) -> list[Route]:
        """The MCP server's route, where the extra is installed."""
        try:
            from mcp.server.transport_security import TransportSecuritySettings

            from arpo.agent.mcp_server import mcp_server
        except ModuleNotFoundError:
            return []
        self.mcp = mcp_server(self.agent, self.admission, self.figures, timeout_s=self.limits.timeout_s)
        # a browser's pages are kept out by their Origin without a key, and by the key
        security = TransportSecuritySettings(enable_dns_rebinding_protection=False) if self.key else None
        app = self.mcp.streamable_http_app(transport_security=security)
        return [Route("/mcp", _GuardedApp(self, app))]

    # --- small answers

    async def health(self, request: Request) -> Response:
        admission = self.admission
        state = {"running": admission.running, "waiting": admission.waiting, "model": self.agent.label}
        if admission.draining:
            return JSONResponse({"status": "ending", **state}, status_code=503)
        return JSONResponse({"status": "ok", **state})

    async def metrics(self, request: Request) -> Response:
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        names = [self.name, *([f"{self.name}/model"] if self.turns else [])]
        shown = [{"id": name, "object": "model", "created": 0, "owned_by": "arpo"} for name in names]
        if (asked := request.path_params.get("model")) is None:
            return JSONResponse({"object": "list", "data": shown})
        return JSONResponse(shown[names.index(asked)]) if asked in names else self._no_model(asked)

    def _no_model(self, name: str) -> Response:
        return _error(404, f"there is no model {name!r:.100}: this server has {self.name!r}", "model_not_found")

    # --- completions

    async def complete(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _error(415, "the body should be application/json", "invalid_request_error")
        stack, kind = AsyncExitStack(), "unknown"
        try:
            asked = parse_request(await json_body(request, MOST_BYTES))
            kind = "model" if asked.tools or asked.model == f"{self.name}/model" else "agent"
            if asked.model not in (self.name, f"{self.name}/model"):
                self._count(kind, "refused")
                return self._no_model(asked.model)
            answering = _Answering(self, asked, kind, stack)
            return await answering.response(request)
        except BaseException as error:
            await stack.aclose()
            outcome, response = _refusal(error)
            self._count(kind, outcome)
            if response is None:
                raise
            return response

    def _count(self, kind: str, outcome: str) -> None:
        self.figures.requests.labels(kind, outcome).inc()

    def events(self, asked: ChatRequest, kind: str) -> Events:
        """What happens while `asked` is answered, and the answer. Raises BadRequest."""
        if kind == "model":
            writer = self.turns
            if writer is None:
                raise BadRequest("tools: this agent's model is behind an endpoint. Ask that for single turns")
            return told(lambda tell: writer.write(asked, tell))
        messages = [message.plain() for message in asked.messages]
        if any(message.role == "tool" or message.tool_calls for message in asked.messages):
            raise BadRequest("messages: the agent runs its own tools. Send `tools` to run yours")
        if messages[-1]["role"] != "user":
            raise BadRequest("messages: the last message is the user's")
        if asked.n > 1:
            raise BadRequest("n: an agent gives one answer (`samples` says out of how many)")
        return self.agent.reply_events(
            messages,
            samples=asked.samples,
            pick=asked.pick,
            temperature=asked.temperature,
            top_p=asked.top_p or 1.0,
            seed=asked.seed,
        )


class _GuardedApp:
    """An ASGI application behind the server's key."""

    def __init__(self, server: AgentServer, app: ASGIApp) -> None:
        self.server, self.app = server, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.server.refusal(Request(scope)) or self.app)(scope, receive, send)


class _Answering:
    """One request while it is answered."""

    def __init__(self, server: AgentServer, asked: ChatRequest, kind: str, stack: AsyncExitStack) -> None:
        self.server, self.asked, self.kind, self.stack = server, asked, kind, stack
        self.id, self.loop = new_id(), asyncio.get_running_loop()
        self.began = self.loop.time()
        self.deadline = self.began + server.limits.timeout_s
        self.sent = defaultdict[int, tuple[int, int]](lambda: (0, 0))  # by choice: characters of thought and content

    async def response(self, request: Request) -> Response:
        """The answer, or the beginning of a stream. Whatever fails until then has a status of its own."""
        try:
            async with asyncio.timeout_at(self.deadline):
                await self._unless_gone(request, self.stack.enter_async_context(self.server.admission.place()))
                events = self.server.events(self.asked, self.kind)
                self.stack.push_async_callback(events.aclose)
                first = await self._unless_gone(request, anext(events))
                if not self.asked.stream:
                    answer = await self._unless_gone(request, self._last(first, events))
        except TimeoutError:
            raise TimeoutError(f"no answer within {self.server.limits.timeout_s:g} s") from None
        if self.asked.stream:
            return _Stream(self._chunks(first, events), self.stack)
        self._counted(answer)
        await self.stack.aclose()
        return JSONResponse(self._whole(answer))

    async def _unless_gone(self, request: Request, work: Any) -> Any:
        """The result of `work`, which ends where the client hangs up. Raises ClientDisconnect."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    async def _last(self, first: Any, events: Events) -> Any:
        event = first
        self._watch(event)
        async for event in events:
            self._watch(event)
        if isinstance(event, AgentAnswer) and event.ending.aborted:
            raise EngineError(f"{event.ending.replace('_', ' ')}: {event.why}")
        return event

    def _watch(self, event: Event) -> None:
        if isinstance(event, ResultsRead):
            self.server.figures.count_calls(event)

    def _counted(self, answer: AgentAnswer | WrittenTurns) -> None:
        self.server.figures.seconds.labels(self.kind).observe(self.loop.time() - self.began)
        self.server.figures.count_tokens(*_usage(answer))
        self.server._count(self.kind, "ok")

    # --- shapes

    def _whole(self, answer: AgentAnswer | WrittenTurns) -> Json:
        usage = usage_json(*_usage(answer))
        if isinstance(answer, AgentAnswer):
            choice = choice_json(0, _finish(answer), message=message_json(answer.text))
            return completion_json(self.id, self.asked.model, [choice], usage, arpo=answer_json(answer))
        choices = []
        for turn in answer.choices:
            content = turn.content if turn.content or not turn.calls else None
            message = message_json(content, turn.reasoning, calls_json(turn.calls, turn.ids))
            choices.append(choice_json(turn.index, turn.finish, message=message))
        return completion_json(self.id, self.asked.model, choices, usage)

    def _chunk(self, *choices: Json, **more: Any) -> bytes:
        return sse(chunk_json(self.id, self.asked.model, choices, **more))

    async def _chunks(self, first: Any, events: Events) -> AsyncGenerator[bytes, None]:
        """The stream of server-sent events. An error within it is an event, too."""
        outcome = "cancelled"
        try:
            for index in range(self.asked.n):
                yield self._chunk(choice_json(index, None, delta={"role": "assistant", "content": ""}))
            async with aclosing(self._alive(first, events)) as alive:
                async for event in alive:
                    for chunk in self._event_chunks(event):
                        yield chunk
            yield sse("[DONE]")
            outcome = "ok"
        except (ArpoError, TimeoutError) as error:
            outcome, response = _refusal(error)
            assert response is not None
            yield sse(bytes(response.body).decode())
        finally:
            if outcome != "ok":
                self.server._count(self.kind, outcome)

    async def _alive(self, first: Any, events: Events) -> AsyncGenerator[Any, None]:
        """`events` from `first` on, and None where nothing happened for a while. Raises TimeoutError."""
        yield first
        while True:
            pending = asyncio.ensure_future(anext(events, None))
            try:
                while True:
                    left = self.deadline - self.loop.time()
                    done, _ = await asyncio.wait({pending}, timeout=max(0.0, min(PING_S, left)))
                    if done:
                        break
                    if left <= PING_S:
                        raise TimeoutError(f"no answer within {self.server.limits.timeout_s:g} s")
                    yield None
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
            if (event := pending.result()) is None:
                return
            yield event

    def _event_chunks(self, event: Event | None) -> list[bytes]:
        if event is None:
            return [b": still answering\n\n"]
        self._watch(event)
        if isinstance(event, AgentAnswer):
            if event.ending.aborted:
                raise EngineError(f"{event.ending.replace('_', ' ')}: {event.why}")
            self._counted(event)
            last = choice_json(0, _finish(event), delta={"content": event.text})
            return [self._chunk(last, arpo=answer_json(event)), *self._usage_chunk(event)]
        if isinstance(event, WrittenTurns):
            self._counted(event)
            return [*map(self._last_chunk, event.choices), *self._usage_chunk(event)]
        if isinstance(event, TurnDelta):
            sent = self.sent[event.index]
            self.sent[event.index] = (sent[0] + len(event.reasoning), sent[1] + len(event.content))
            return [self._chunk(choice_json(event.index, None, delta=_delta(event.reasoning, event.content)))]
        delta = {}
        if isinstance(event, TextWritten) and self.asked.samples == 1:
            delta = {"reasoning_content": event.text}  # clients that know no events show it
        return [self._chunk(choice_json(0, None, delta=delta), event=event_json(event))]

    def _last_chunk(self, turn: WrittenTurn) -> bytes:
        """What of a turn was not yet sent."""
        thought, content = self.sent[turn.index]
        delta = _delta(turn.reasoning[thought:], turn.content[content:])
        if turn.calls:
            calls = calls_json(turn.calls, turn.ids)
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        return self._chunk(choice_json(turn.index, turn.finish, delta=delta))

    def _usage_chunk(self, answer: AgentAnswer | WrittenTurns) -> list[bytes]:
        return [self._chunk(usage=usage_json(*_usage(answer)))] if self.asked.include_usage else []


class _Stream(Response):
    """A stream that gives back what it holds, however it ends: whole, broken off by the client, not even begun."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], stack: AsyncExitStack) -> None:
        self.chunks, self.stack = chunks, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        try:
            await StreamingResponse(self.chunks, media_type="text/event-stream", headers=headers)(scope, receive, send)
        finally:
            await self.chunks.aclose()
            await self.stack.aclose()


def _delta(reasoning: str, content: str) -> Json:
    return {**({"reasoning_content": reasoning} if reasoning else {}), **({"content": content} if content else {})}


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _finish(answer: AgentAnswer) -> str:
    return "stop" if answer.ending is StopReason.FINISHED else "length"


def _usage(answer: AgentAnswer | WrittenTurns) -> tuple[int, int]:
    """Tokens of the prompt, and tokens written in all branches."""
    if isinstance(answer, WrittenTurns):
        return answer.num_read, sum(turn.num_tokens for turn in answer.choices)
    rollout = answer.rollout
    first = min(rollout.tree.turns, default=None)
    return rollout.num_read(first) if first else 0, sum(map(rollout.num_written, rollout.tree.turns))


def answer_json(answer: AgentAnswer) -> Json:
    """What only an agent's answer has."""
    return {
        "ending": answer.ending.value,
        "votes": dict(answer.votes),
        "branches": len(answer.rollout.tree.endings),
        "leaf": ".".join(map(str, answer.leaf)),
    }


def _error(status: int, message: str, code: str, **headers: str) -> Response:
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_json(message, kind, code), status_code=status, headers=headers)


def _refusal(error: BaseException) -> tuple[str, Response | None]:
    """How a failed request counts, and the answer to it; None for a bug and for a client that is gone."""
    text = str(error)
    match error:
        case RefusedError():
            code = "overloaded" if error.status == 429 else "ending"
            return "refused", _error(error.status, text, code, **{"retry-after": str(error.retry_after_s)})
        case BadRequest() | ConfigError() | FormatError():
            return "refused", _error(400, text, "invalid_request_error")
        case TimeoutError():
            return "timeout", _error(504, text, "timeout")
        case EngineError() | ToolsStoppedError():
            return "failed", _error(503, text, "unavailable", **{"retry-after": "5"})
        case ArpoError():
            return "failed", _error(500, text, "failed")
        case ClientDisconnect():
            return "cancelled", Response(status_code=499)
        case asyncio.CancelledError():
            return "cancelled", None
    return "failed", None
