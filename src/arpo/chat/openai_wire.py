"""OpenAI's chat completions on a server's side: requests are read, answers, streams and errors written.

Knows the format (https://platform.openai.com/docs/api-reference/chat). Refuses to know who answers, and HTTP beyond
status and body.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arpo.chat.json_text import call_of
from arpo.core.tree import Call
from arpo.endpoint.client import text_of

Finish = Literal["stop", "length", "tool_calls"]
DONE = b"data: [DONE]\n\n"
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class WireError(Exception):
    """A request that is answered with an error: HTTP `status`, what is wrong, and the `param` that is."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


class ChatRequest(BaseModel):
    """The body of a chat completion's request. Fields that are not named here are kept and mean nothing."""

    model_config = ConfigDict(extra="allow")

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str = ""
    tools: list[dict[str, Any]] = []
    stream: bool = False
    n: Literal[1] = 1
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Raises WireError (400) that names the field."""
        try:
            given = json.loads(body)
            if not isinstance(given, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise WireError(400, f"the body is no JSON object: {error}") from error
        try:  # null stands for the default
            request = cls.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise WireError(400, f"{where}: {first['msg']} (got {first['input']!r:.80})", where) from error
        for number, message in enumerate(request.messages):
            try:
                if not isinstance(message.get("role"), str):
                    raise TypeError("no role")
                text_of(message.get("content"))
            except TypeError as error:
                raise WireError(400, f"no chat message: {error}", f"messages.{number}") from error
        return request

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    def functions(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Name, description and JSON schema of each tool. Raises WireError (400)."""
        for number, tool in enumerate(self.tools):
            function = tool.get("function")
            if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
                raise WireError(400, "only functions can be tools", f"tools.{number}")
            name, description = function.get("name"), function.get("description") or ""
            schema = function.get("parameters") or {"type": "object", "properties": {}}
            if not (isinstance(name, str) and isinstance(description, str) and isinstance(schema, Mapping)):
                raise WireError(400, "a function has a name, a description and parameters", f"tools.{number}.function")
            yield name, description, schema


def calls_of(message: Mapping[str, Any]) -> tuple[Call, ...]:
    """The tool calls of an assistant's message; one that cannot be read has an error."""
    written = message.get("tool_calls") or ()
    return tuple(call_of(call) or Call(name="", error="a call has a function with a name") for call in written)


def assistant_message(content: str, calls: Sequence[Call] = ()) -> dict[str, Any]:
    """The assistant's message that says `content` and makes `calls`, which have ids."""
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
            }
            for call in calls
        ]
    return message


def completion(
    message: Mapping[str, Any],
    finish: Finish,
    *,
    id: str,
    model: str,
    created: int,
    usage: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A whole chat completion. `created`: seconds since 1970."""
    choice = {"index": 0, "message": dict(message), "finish_reason": finish, "logprobs": None}
    whole = {"id": id, "object": "chat.completion", "created": created, "model": model, "choices": [choice]}
    return whole | ({"usage": dict(usage)} if usage is not None else {})


def chunk(
    delta: Mapping[str, Any], finish: Finish | None = None, *, id: str, model: str, created: int
) -> dict[str, Any]:
    """A piece of a streamed chat completion."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
    return {"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": [choice]}


def deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An assistant's message as the pieces of a stream: its text, then each call."""
    yield {"role": "assistant", "content": message["content"] or ""}
    for index, call in enumerate(message.get("tool_calls", ())):
        yield {"tool_calls": [{"index": index, **call}]}


def event(data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
