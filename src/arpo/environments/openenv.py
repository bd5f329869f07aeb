"""Environments of OpenEnv: a running environment server, asked by the client of the package openenv-core.

    environment: {use: openenv, options: {url: "http://127.0.0.1:8000"}}

Each episode has a session of its own on the server. A server offers tools (MCP), or takes actions of one shape, which
then are the one tool `act`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from arpo.environments import AgentTurn, Environment, Step, setup_of
from arpo.environments.episodes import EnvironmentTool
from arpo.errors import ConfigError, ProviderError, ToolError
from arpo.foreign import loads
from arpo.http.exchange import MOST_BYTES
from arpo.tasks import Task
from arpo.threads import run_off_loop
from arpo.tools import CallContext, ToolResult

NOT_SEEN = ("metadata", "done", "reward")  # of an observation: the rest is for the agent


class OpenEnvEnvironment(Environment):
    """`url` of the server. A task's `setup` holds further arguments of its `reset`; the seed comes from the run.

    An episode begins with the task's messages and the first observation, and ends when the server says so or with a
    turn without a call. A branch repeats the turns of its trunk in a new session.
    """

    name = "openenv"
    forks = "replay"

    def __init__(self, url: str) -> None:
        try:
            from openenv.core.generic_client import GenericEnvClient
        except ImportError as error:
            hint = "pip install 'openenv-core>=0.3'"
            raise ConfigError("needs the package openenv-core", where="url", value=url, hint=hint) from error
        self.url = url.rstrip("/")
        self.client = GenericEnvClient(base_url=self.url).sync()
        self.earned, self.done, self.open = 0.0, False, False

    def reset(self, task: Task) -> Task:
        try:
            self.client.connect()
        except ConnectionError as error:
            raise ProviderError(str(error), retriable=True, provider=self.name) from error
        self.open = True
        begun = self.client.reset(seed=self.random.getrandbits(31), **setup_of(task))
        self.done = bool(begun.done)
        *before, last = task.messages
        text = "\n\n".join(filter(None, (str(last["content"]), _text(begun.observation))))
        return replace(task, messages=(*before, {**last, "content": text}), tools=self._tools())

    def _tools(self) -> list[EnvironmentTool]:
        schema = self._schema()["action"]
        fields = {name: about for name, about in schema.get("properties", {}).items() if name != "metadata"}
        if not {"tool_name", "arguments"} <= set(fields):
            offered = {**schema, "properties": fields}
            about = str(schema.get("description") or "Acts in the environment.")
            return [self._tool("act", about, offered, lambda arguments: arguments)]
        listed = self.client.step({"type": "list_tools"}).observation["tools"]
        return [
            self._tool(
                tool["name"], tool.get("description") or "", tool["input_schema"], partial(_called, tool["name"])
            )
            for tool in listed
        ]

    def _schema(self) -> Any:
        import httpx

        body = b""
        with httpx.stream("GET", f"{self.url}/schema", timeout=30) as answer:
            for piece in answer.raise_for_status().iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise ToolError(f"{self.url}/schema has more than {MOST_BYTES:,} bytes")
        return loads(body)

    def _tool(self, name: str, description: str, schema: Mapping[str, Any], action: Any) -> EnvironmentTool:
        async def act(
            environment: OpenEnvEnvironment, arguments: Mapping[str, Any], context: CallContext
        ) -> ToolResult:
            return ToolResult(text=await run_off_loop(environment.act, action(arguments)))

        return EnvironmentTool(name, description, schema, act, state_of=self.name)

    def act(self, action: Mapping[str, Any]) -> str:
        """What comes of an action, as text."""
        if self.done:
            raise ToolError("the episode is over")
        taken = self.client.step(dict(action))
        self.earned += float(taken.reward or 0.0)
        self.done = bool(taken.done)
        if error := taken.observation.get("error"):
            raise ToolError(str(error.get("message", error) if isinstance(error, Mapping) else error))
        return _text(taken.observation.get("result") if "tool_name" in taken.observation else taken.observation)

    def step(self, turn: AgentTurn) -> Step:
        earned, self.earned = self.earned, 0.0
        return Step(done=self.done or not turn.calls, reward=earned)

    def close(self) -> None:
        if self.open:
            self.client.close()


def _called(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "call_tool", "tool_name": name, "arguments": dict(arguments)}


def _text(observed: Any) -> str:
    """An observation as the agent reads it: the only field's value, or all of them."""
    if isinstance(observed, Mapping) and isinstance(observed.get("content"), list):  # an MCP tool's result
        return "\n".join(str(part.get("text", "")) for part in observed["content"])
    if isinstance(observed, Mapping):
        seen = {name: value for name, value in observed.items() if name not in NOT_SEEN and value not in (None, "")}
        observed = next(iter(seen.values())) if len(seen) == 1 else seen
    if observed in (None, {}):
        return ""
    return observed if isinstance(observed, str) else json.dumps(observed, ensure_ascii=False)
