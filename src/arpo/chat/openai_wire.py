"""OpenAI's chat completions: what a request may ask for, and the shapes of answers, chunks and errors.

https://platform.openai.com/docs/api-reference/chat. `arpo serve` and the gateway share it. Knows JSON. Refuses to know
agents and engines.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from arpo.core.tree import Call
from arpo.files import as_json
from arpo.http.serving import BadRequest

Json = dict[str, Any]
Stop = Annotated[str, Field(max_length=1000)]
MOST_MESSAGES, MOST_TOOLS, MOST_STOPS = 10_000, 1024, 16  # of a request; a turn is searched for its stops as it grows
NOT_SERVED: dict[str, list[object]] = {  # fields that would change an answer, and the values that do not
    "response_format": [None, {"type": "text"}],
    "logit_bias": [None, {}],
    "frequency_penalty": [None, 0],
    "presence_penalty": [None, 0],
    "logprobs": [None, False],
    "functions": [None],
    "function_call": [None],
    "audio": [None],
    "modalities": [None, ["text"]],
}


class _Function(BaseModel):
    name: str
    arguments: str = "{}"


class _ToolCall(BaseModel):
    id: str = ""
    function: _Function


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[_ToolCall] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_call_id: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: object) -> object:
        """The text of a list of parts; null is no text."""
        if not isinstance(content, list):
            return "" if content is None else content
        if other := [part for part in content if not isinstance(part, dict) or part.get("type") != "text"]:
            raise ValueError(f"only parts of the type text are read here, not {other[0]!r:.60}")
        return "".join(str(part.get("text", "")) for part in content)

    def plain(self) -> dict[str, str]:
        """As a task's message; `developer` is what newer clients call the system."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request. `samples` and `pick` are arpo's own: see `arpo.Agent.ask`; `tree` asks for the whole tree with the
    answer."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    tools: list[Json] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_choice: Any = "auto"
    n: int = Field(default=1, ge=1, le=64)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: list[Stop] = Field(default_factory=list, max_length=MOST_STOPS)
    samples: int = Field(default=1, ge=1, le=256)
    pick: Literal["vote", "judge"] = "vote"
    tree: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: object) -> object:
        return [] if stop is None else [stop] if isinstance(stop, str) else stop

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Without empty ones, which some clients send for none."""
        return tuple(filter(None, self.stop))

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def parse_request(body: object) -> ChatRequest:
    """Raises BadRequest, which names the field, its value and what would be right."""
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise BadRequest(f"{where or 'the request'}: {wrong['msg']} (got {wrong['input']!r:.100})") from error
    for name, value in (request.model_extra or {}).items():
        if name in NOT_SERVED and value not in NOT_SERVED[name]:
            raise BadRequest(f"{name}: is not supported here (got {value!r:.100}). Leave it out")
    if request.tool_choice not in ("auto", "none", None):
        raise BadRequest(f"tool_choice: should be auto or none (got {request.tool_choice!r:.100})")
    return request


# --- answers


def new_id() -> str:
    return f"chatcmpl-{uuid4().hex}"


def message_json(content: str | None, reasoning: str = "", calls: Sequence[Json] = ()) -> Json:
    """An assistant's message."""
    message: Json = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = list(calls)
    return message


def calls_json(calls: Iterable[Call], ids: Iterable[str]) -> list[Json]:
    return [
        {
            "id": id_,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(as_json(call.arguments), ensure_ascii=False)},
        }
        for call, id_ in zip(calls, ids, strict=True)
    ]


def completion_json(id_: str, model: str, choices: Sequence[Json], usage: Json, **more: Any) -> Json:
    body = {"id": id_, "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**body, "choices": list(choices), "usage": usage, **more}


def chunk_json(id_: str, model: str, choices: Sequence[Json], **more: Any) -> Json:
    body = {"id": id_, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
    return {**body, "choices": list(choices), **more}


def choice_json(index: int, finish: str | None, *, message: Json | None = None, delta: Json | None = None) -> Json:
    shown = {"message": message} if message is not None else {"delta": delta or {}}
    return {"index": index, **shown, "finish_reason": finish, "logprobs": None}


def usage_json(read: int, written: int) -> Json:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def error_json(message: str, kind: str, code: str | None = None) -> Json:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def sse(data: Mapping[str, Any] | str) -> bytes:
    """One event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
