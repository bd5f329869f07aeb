"""Environments of the package verifiers 0.2: their data set, their tools, their users and games, their rubric.

    data: {train: {source: "arpo.environments.verifiers:tasks", options: {env: my-environment}}}
    environment: {use: verifiers, options: {env: my-environment}}

A rollout of verifiers asks a model itself; here the turns come from arpo, so its parts are called one by one:
`setup_state`, `env_response` (for a turn's calls, or its words), `is_completed`, and the rubric at the end.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Self

from arpo.environments import AgentTurn, Environment, Step
from arpo.environments.episodes import EnvironmentTool
from arpo.errors import ConfigError
from arpo.import_path import import_from_path
from arpo.tasks import Task
from arpo.tools import CallContext, ToolResult
from arpo.tools.tool_event_loop import ToolEventLoop

_calls = ToolEventLoop("verifiers")  # a tool that blocks holds up no engine


@lru_cache(maxsize=8)
def _loaded(env: str, options: str) -> Any:
    try:
        import verifiers
    except ImportError as error:
        raise ConfigError(
            "needs the package verifiers", where="env", value=env, hint="pip install 'verifiers==0.2.*'"
        ) from error
    if not hasattr(verifiers, "load_environment"):
        wrong = f"verifiers {verifiers.__version__} has no `load_environment`"
        raise ConfigError(wrong, where="env", value=env, hint="pip install 'verifiers==0.2.*'")
    make: Any = import_from_path(env, "env") if ":" in env else lambda **kept: verifiers.load_environment(env, **kept)
    return make(**json.loads(options))


def tasks(env: str, options: Mapping[str, Any] | None = None, split: str = "train") -> list[Task]:
    """The rows of an environment's data set (of that for evaluation, but in training) as tasks."""
    made = _loaded(env, json.dumps(options or {}, sort_keys=True))
    rows = made.get_dataset() if split == "train" else made.get_eval_dataset()
    read: list[Task] = []
    for number, row in enumerate(rows):
        answer = row.get("answer")
        read.append(
            Task(
                id=f"{env}/{split}/{row.get('example_id', number)}",
                messages=tuple(map(_plain, row["prompt"])),
                answers=(str(answer),) if answer else (),
                source=f"verifiers/{env}",
                metadata={"row": dict(row)},
            )
        )
    return read


def _plain(message: Any) -> dict[str, str]:
    value = message if isinstance(message, Mapping) else message.model_dump()
    return {"role": str(value["role"]), "content": _text(value["content"])}


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    parts = [part if isinstance(part, Mapping) else part.model_dump() for part in content]
    return "\n".join(str(part.get("text", "")) for part in parts)


class VerifiersEnvironment(Environment):
    """`env` names an installed environment, or by an import path a function that makes one; `options` are its
    arguments. The rubric's reward comes with the last turn. A rubric that compares a group is refused by verifiers."""

    name = "verifiers"

    def __init__(self, env: str, options: Mapping[str, Any] | None = None) -> None:
        self.env = _loaded(env, json.dumps(options or {}, sort_keys=True))
        if not hasattr(self.env, "env_response") and type(self.env).__name__ != "SingleTurnEnv":
            raise ConfigError("is no environment of turns", where="env", value=type(self.env).__name__)

    async def reset(self, task: Task) -> Task:
        self.state = await self.env.init_state(copy.deepcopy(task.metadata["row"]), _no_client(), "arpo", {})
        self.state = await self.env.setup_state(self.state) or self.state
        self.messages = list(self.state["prompt"])
        tools = [
            EnvironmentTool(tool.name, tool.description, tool.parameters, _act(tool.name), state_of=self.name)
            for tool in self.state["tool_defs"]
        ]
        return replace(task, messages=tuple(map(_plain, self.messages)), tools=tools)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result of one call, as the environment answers a message with it."""
        from verifiers.types import AssistantMessage, ToolCall

        made = ToolCall(id="call", name=name, arguments=json.dumps(dict(arguments)))
        response = await self._response([*self.messages, AssistantMessage(tool_calls=[made])])
        return "\n".join(_text(message.content) for message in response)

    async def _response(self, messages: list[Any]) -> list[Any]:
        from verifiers.utils.message_utils import maybe_normalize_messages

        response = await self.env.env_response(messages, self.state)
        return list(maybe_normalize_messages(response, field_name="env_response"))

    async def step(self, turn: AgentTurn) -> Step:
        from verifiers.types import AssistantMessage, ToolCall, ToolMessage, TrajectoryStep

        calls = [
            ToolCall(id=f"call_{number}", name=call.name, arguments=json.dumps(dict(call.arguments)))
            for number, call in enumerate(turn.calls)
        ]
        said = AssistantMessage(content=turn.text if calls else turn.said, tool_calls=calls or None)
        await self.env.add_trajectory_step(
            self.state,
            TrajectoryStep(
                prompt=self.messages,
                completion=[said],
                response=None,  # type: ignore[typeddict-item]
                tokens=None,
                reward=None,
                advantage=None,
                is_truncated=False,
                trajectory_id=self.state["trajectory_id"],
                extras={},
            ),
        )
        results = [
            ToolMessage(tool_call_id=call.id, content=result.text)
            for call, result in zip(calls, turn.results, strict=True)
        ]
        self.messages = [*self.messages, said, *results]
        done, message = await self.env.is_completed(self.state), None
        if not done and not calls:
            response = await self._response(self.messages)
            self.messages = [*self.messages, *response]
            message = "\n".join(_text(each.content) for each in response)
            done = await self.env.is_completed(self.state)
        return Step(message=message, done=done, reward=await self._score() if done else 0.0)

    async def _score(self) -> float:
        await self.env.render_completion(self.state)
        await self.env.rubric.score_rollout(self.state)
        return float(self.state["reward"])

    def fork(self) -> Self:
        other = copy.copy(self)
        client = self.state.pop("client", None)
        try:
            other.state = copy.deepcopy(self.state)
        finally:
            self.state["client"] = client
        other.state["client"] = client
        other.messages = list(self.messages)
        return other


def _act(name: str) -> Any:
    async def act(environment: VerifiersEnvironment, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        return ToolResult(text=await _calls.run(lambda: environment.call(name, arguments)))

    return act


@lru_cache(maxsize=1)
def _no_client() -> Any:
    """What stands for the client of a model: nothing here asks one, but a judge of a rubric brings its own."""
    from verifiers.clients import Client

    class NoClient(Client):  # type: ignore[type-arg,misc]
        def __init__(self) -> None:
            pass

    NoClient.__abstractmethods__ = frozenset()
    return NoClient()
