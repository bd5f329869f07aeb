"""Outside agents as an environment: any program that asks an OpenAI-compatible endpoint, unchanged, is trained.

    environment: {use: gateway, options: {command: [python, agent.py]}}

Each trajectory has an agent of its own, which asks this run for its turns and runs its tools itself. Its first request
is the prompt. What a further one adds where the last turn ended is the observation; one with another history begins a
new context. Knows
chat messages. Refuses to know tokens: the chat format writes them, so that a turn in a later context is what was
sampled.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.chat.json_text import read_arguments
from arpo.chat.openai_wire import ChatMessage, Json, calls_json, message_json
from arpo.core.tree import Call
from arpo.environments import AgentTurn, Environment, Step
from arpo.environments.episodes import EnvironmentTool
from arpo.environments.gateway_server import AgentEnd, AgentRequest, GatewayServer, Trajectory, server_at
from arpo.errors import ConfigError, ContextChangedError
from arpo.http.serving import is_this_machine
from arpo.tasks import Task
from arpo.tools import CallContext, ToolResult
from arpo.tools.schemas import from_openai


class GatewayEnvironment(Environment):
    """`command` is an agent's program, started once a trajectory with OPENAI_BASE_URL, OPENAI_API_KEY and ARPO_TASK
    (id, messages and setup of the task, as JSON); without one, agents take tasks at `http://host:port/v1/rollouts`.

    An agent may take `deadline_s` seconds to its first request, and from an answer to its next one. `key_env` names
    the environment variable with the key that agents must present; a `host` that other machines reach needs one.
    After the episode, `result` is what the agent has reported.
    """

    name = "gateway"
    forks = "never"
    rewards = False
    deadline_s = 7 * 86_400.0  # its agents have deadlines of their own, and wait for each other

    def __init__(
        self,
        command: Sequence[str] | str = (),
        host: str = "127.0.0.1",
        port: int = 0,
        key_env: str = "",
        deadline_s: float = 120.0,
    ) -> None:
        self.command = shlex.split(command) if isinstance(command, str) else list(map(str, command))
        self.host, self.port, self.patience_s = host, port, deadline_s
        self.key = os.environ.get(key_env, "") if key_env else ""
        if key_env and not self.key:
            raise ConfigError("is not in the environment", where="key_env", value=key_env)
        if not self.key and not is_this_machine(f"[{host}]" if ":" in host else host):
            raise ConfigError("other machines reach it: set `key_env`", where="host", value=host)
        if not self.command and not port:
            raise ConfigError("agents that no `command` starts need to know the port", where="port", value=port)
        self.server: GatewayServer | None = None
        self.trajectory: Trajectory | None = None
        self.result: Any = None

    async def reset(self, task: Task) -> Task:
        self.server = server_at(self.host, self.port, self.key)
        self.trajectory = await self.server.run(self.server.begin(task, self.command))
        asked = await self._next(idle=False)
        if isinstance(asked, AgentEnd):
            raise RuntimeError(f"the agent ended before its first request. {asked.failure}".strip())
        self.asked, self.history, self.texts = asked, asked.request.messages, list[tuple[ChatMessage, str]]()
        try:
            tools = [_tool(tool, self.name) for tool in asked.request.tools]
        except ConfigError as error:  # of the agent, which must not stop the run
            raise ValueError(str(error)) from error
        return replace(task, messages=tuple(map(_spoken, self.history)), tools=tools)

    async def step(self, turn: AgentTurn) -> Step:
        made = [call for call, result in zip(turn.calls, turn.results, strict=True) if result.answered]
        if turn.calls and not made:
            return Step()  # the model reads what is wrong with its calls, and the agent goes on waiting
        calls = [replace(call, id=f"call_{turn.number}_{number}") for number, call in enumerate(made)]
        made_json = calls_json(calls, [call.id for call in calls])
        message = message_json(turn.content or ("" if not calls else None), calls=made_json)
        answer = ChatMessage.model_validate(message)
        self.history = [*self.history, answer]
        self.texts.append((answer, turn.text))
        assert self.server is not None
        await self.server.run(_answer(self.asked, message))
        asked = await self._next(idle=not calls)
        if isinstance(asked, AgentEnd):
            if asked.failure:
                raise RuntimeError(f"the agent broke down: {asked.failure}")
            self.result = asked.result
            return Step(done=True, reward=asked.reward)
        if asked.request.tools != self.asked.request.tools:
            raise ContextChangedError("the agent's next request has other tools")
        new = continued(self.history, asked.request.messages)
        self.asked, self.history = asked, asked.request.messages
        return (observed(new, calls) if new else None) or Step(context=[*map(self._read, self.history)])

    def _read(self, message: ChatMessage) -> Json:
        """A message of a new context: with the text of the turn that it was, where it was one."""
        texts = (text for answer, text in reversed(self.texts) if _key(answer) == _key(message))
        return message.model_dump() | message.plain() | {"content": next(texts, message.content)}

    async def _next(self, idle: bool) -> AgentRequest | AgentEnd:
        """What the agent does next. Silence after a turn without a call (`idle`) is an end, else a failure."""
        assert self.server is not None and self.trajectory is not None
        try:
            return await self.server.run(self.trajectory.next(self.patience_s))
        except TimeoutError:
            return AgentEnd(failure="" if idle else f"no request for {self.patience_s:g} s")

    def close(self) -> None:
        if self.server is not None and self.trajectory is not None:
            self.server.close(self.trajectory)


def continued(history: Sequence[ChatMessage], messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """What follows `history` in `messages`; nothing where they do not go on there."""
    same = all(_key(known) == _key(message) for known, message in zip(history, messages, strict=False))
    return messages[len(history) :] if same else ()


def observed(new: Sequence[ChatMessage], calls: Sequence[Call]) -> Step | None:
    """What comes back for a turn with `calls`: their results, then words of the user. None for anything else."""
    results = {message.tool_call_id: message.content for message in new[: len(calls)]}
    said = new[len(calls) :]
    roles = [message.role for message in new]
    if roles != ["tool"] * len(calls) + ["user"] * len(said) or set(results) != {call.id for call in calls}:
        return None
    message = "\n\n".join(each.content for each in said) if said else None
    return Step(message=message, results=tuple(results[call.id] for call in calls))


def _key(message: ChatMessage) -> tuple[Any, ...]:
    """What makes two messages the same: clients write arguments in their own way."""
    calls = [
        (call.id, call.function.name, read_arguments(call.function.arguments)) for call in message.tool_calls or ()
    ]
    return message.role, message.content.strip(), calls, message.tool_call_id


def _spoken(message: ChatMessage) -> dict[str, str]:
    """A message of a first request."""
    if message.tool_calls or message.role == "tool":
        raise ValueError("the agent's first request holds tool calls already: a trajectory begins before them")
    return message.plain()


def _tool(offered: Json, environment: str) -> EnvironmentTool:
    """A tool that a request offers."""
    tool = from_openai(_taken, offered)
    return EnvironmentTool(tool.name, tool.description, tool.schema, _taken, state_of=environment)


async def _taken(environment: Environment, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
    """The agent runs the call itself: its result comes with the step."""
    return ToolResult(text="")


async def _answer(asked: AgentRequest, message: Json) -> None:
    if not asked.answer.done():
        asked.answer.set_result(message)
