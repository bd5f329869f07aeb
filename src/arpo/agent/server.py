"""`arpo serve`: an agent behind OpenAI's chat completions, for any client that speaks them.

    POST /v1/chat/completions    the agent answers with its own tools, steps streamed as events; a request that brings
                                 `tools`, or names the model NAME/model, gets one turn, and its client runs the calls
    GET /v1/models  /health  /metrics
    /mcp                         the agent as an MCP server
    /                            a page to talk with the agent and watch its tree grow

Knows HTTP: keys, limits, time-outs, back-pressure, and how to end. `arpo.agent.deployed` knows the agent and
`arpo.agent.turns` single turns.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from arpo.agent.admission import Admission
from arpo.agent.answering import Answering, Events, error_response, refusal_of
from arpo.agent.deployed import DeployedAgent
from arpo.agent.figures import ServerFigures
from arpo.agent.turns import TurnWriter
from arpo.assembly.components import Components
from arpo.chat.openai_wire import ChatRequest, parse_request
from arpo.errors import ConfigError
from arpo.event_loop import told
from arpo.http.serving import BadRequest, is_this_machine, json_body
from arpo.view.page import built_page
from arpo.view.server import HEADERS, asset_routes

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

MOST_BYTES = 4 << 20  # of a request


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
        self.engine = components.agent.engine if isinstance(components, Components) else None
        self.figures = ServerFigures(self.admission, self.engine)
        self.mcp: MCPServer | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._guarded(self.complete), methods=["POST"]),
                Route("/v1/models", self._guarded(self.models)),
                Route("/v1/models/{model:path}", self._guarded(self.models)),
                Route("/metrics", self._guarded(self.metrics)),
                Route("/health", self.health),
                *self._mcp_routes(),
                *_page_routes(),
            ],
            middleware=[] if self.key else [Middleware(_OwnMachineAlone)],
            lifespan=self._lifespan,
        )

    async def start(self) -> None:
        """Start the engine: a server that answers is ready. Where that fails, or is cancelled, all is closed."""
        try:
            if self.engine is not None:
                await self.engine.start()
        except BaseException:
            await self.agent.close()
            raise

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
            return error_response(401, "the key is missing or wrong: Authorization: Bearer KEY", "invalid_api_key")
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
        state = {} if self.refusal(request) else state
        if admission.draining:
            return JSONResponse({"status": "ending", **state}, status_code=503)
        return JSONResponse({"status": "ok", **state})

    async def metrics(self, request: Request) -> Response:
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        names = [self.name, *([f"{self.name}/model"] if self.turns else [])]
        tools = [tool.name for tool in self.agent.components.agent.tools]
        about = {
            "object": "model",
            "created": 0,
            "owned_by": "arpo",
            "arpo": {"label": self.agent.label, "tools": tools},
        }
        shown = [{"id": name, **about} for name in names]
        if (asked := request.path_params.get("model")) is None:
            return JSONResponse({"object": "list", "data": shown})
        return JSONResponse(shown[names.index(asked)]) if asked in names else self._no_model(asked)

    def _no_model(self, name: str) -> Response:
        return error_response(404, f"there is no model {name!r:.100}: this server has {self.name!r}", "model_not_found")

    # --- completions

    async def complete(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return error_response(415, "the body should be application/json", "invalid_request_error")
        stack, kind = AsyncExitStack(), "unknown"
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                body = await json_body(request, MOST_BYTES)
            asked = parse_request(body)
            kind = "model" if asked.tools or asked.model == f"{self.name}/model" else "agent"
            if asked.model not in (self.name, f"{self.name}/model"):
                self.count(kind, "refused")
                return self._no_model(asked.model)
            answering = Answering(self, asked, kind, stack)
            return await answering.response(request)
        except BaseException as error:
            await stack.aclose()
            outcome, response = refusal_of(error)
            self.count(kind, outcome)
            if response is None:
                raise
            return response

    def count(self, kind: str, outcome: str) -> None:
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


class _OwnMachineAlone:
    """An ASGI application that no web page reaches, under whatever name its host resolves to this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.app
        if scope["type"] == "http" and not is_this_machine(Request(scope).headers.get("host", "")):
            answer = error_response(403, "without a key this server answers its own machine alone", "forbidden")
        await answer(scope, receive, send)


class _GuardedApp:
    """An ASGI application behind the server's key."""

    def __init__(self, server: AgentServer, app: ASGIApp) -> None:
        self.server, self.app = server, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.server.refusal(Request(scope)) or self.app)(scope, receive, send)


def _page_routes() -> list[Route]:
    """The page, which holds no secret: what it asks for needs the key."""
    page = built_page()
    html = page.html.replace('<div id="app">', '<div id="app" data-agent>')

    async def index(request: Request) -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=HEADERS)

    return [Route("/", index), *asset_routes(page)]
