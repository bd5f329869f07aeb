"""Native tool calls of chat endpoints. The conversation consists of JSON lines, packed into numbers.

    prompt        {"messages": […], "tools": […]}
    turn          the assistant's message from the endpoint, with its finish_reason
    observation   [a message of the role `tool` for each call]

Knows messages and calls. Only the engine `openai` writes turns of this format, and it reads the same lines
(`conversation`). Refuses to know tokenizers: the served model has its own.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.chat import ParsedTurn, TraceStep, packed
from arpo.chat.body import read_object
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.tags import checked_length
from arpo.chat.template import tool_schema
from arpo.chat.token_text import CUT_MARK, MAX_CHARS_PER_TOKEN
from arpo.core.tree import Call, ToolCallResult, Turn
from arpo.errors import FormatError
from arpo.final_answer import boxed, final_answer
from arpo.tasks import Task
from arpo.tools import Tool

# the fields of an assistant's message that go back to the endpoint; the rest (its reasoning) does not
SENT = ("role", "content", "tool_calls", "refusal")


class NativeFormat:
    """For one set of tools. `result_tokens` and `prompt_tokens` count packed numbers: about four characters each."""

    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        *,
        system: str = "",
        result_tokens: int = 512,
        prompt_tokens: int | None = None,
        require_boxed: bool = False,
        no_calls_left: str = NO_CALLS_LEFT,
    ) -> None:
        self.system, self.result_tokens, self.prompt_tokens = system, result_tokens, prompt_tokens
        self.require_boxed, self._no_calls_left = require_boxed, no_calls_left
        self._tools = {tool.name: tool for tool in tools}

    def render(self, task: Task, tools: Sequence[Tool]) -> array[int]:
        """The first line. Raises FormatError for a prompt that is too long."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *map(dict, task.messages)]
        line = _line({"messages": messages, "tools": [tool_schema(tool) for tool in tools]})
        return array("i", checked_length(list(packed.encode(line)), task, self.prompt_tokens))

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """The calls of an assistant's message, or its answer: the content of answer tags or a box, else the whole
        text."""
        message = read_object(packed.decode(tokens))
        if message is None:
            return ParsedTurn(text=packed.decode(tokens), well_formed=False)
        content = str(message.get("content") or "").rpartition("</think>")[2]
        calls = tuple(map(_call, _calls(message)))
        if calls:
            return ParsedTurn(text=shown(message), calls=calls, well_formed=not any(call.error for call in calls))
        answer = final_answer(content)
        finished = answer is not None and message.get("finish_reason") == "stop"
        well_formed = finished and (boxed(content) is not None or not self.require_boxed)
        return ParsedTurn(text=shown(message), answer=answer, well_formed=well_formed)

    def observe(
        self, turn: Turn, outcomes: Sequence[ToolCallResult], calls_left: int | None
    ) -> tuple[array[int], tuple[ToolCallResult, ...]]:
        """A message with the capped result of each call. The last one says so if no calls are left."""
        calls = _calls(read_object(packed.decode(turn.tokens)) or {})
        messages, results = [], []
        for number, (call, outcome) in enumerate(zip(calls, outcomes, strict=True)):
            text, cut = self._capped(outcome.text)
            last = number == len(outcomes) - 1 and calls_left is not None and calls_left <= 0
            notice = f"\n{self._no_calls_left}" if last and self._no_calls_left else ""
            messages.append({"role": "tool", "tool_call_id": str(call.get("id") or ""), "content": text + notice})
            results.append(replace(outcome, cut=outcome.cut or cut))
        return packed.encode(_line(messages)), tuple(results)

    def _capped(self, text: str) -> tuple[str, bool]:
        tokens = packed.encode(text[: self.result_tokens * MAX_CHARS_PER_TOKEN])
        if len(text) <= self.result_tokens * MAX_CHARS_PER_TOKEN and len(tokens) <= self.result_tokens:
            return packed.decode(tokens), False
        mark = packed.encode(CUT_MARK)
        return packed.decode(tokens[: max(0, self.result_tokens - len(mark))]) + CUT_MARK, True

    def encode_turn(self, text: str) -> array[int]:
        """Numbers of a JSON message from `write` or an endpoint. Raises FormatError for other text."""
        if read_object(text) is None:
            raise FormatError(f"a turn of native tool calls must be a message as JSON (got {text!r:.80})")
        return packed.encode(text.rstrip("\n") + "\n")

    def write(self, step: TraceStep, first: bool = False) -> str:
        """The message with the thought of `step` in think tags, then its calls or its answer."""
        thought = f"<think>{step.thought}</think>" if step.thought else ""
        message: dict[str, Any] = {"role": "assistant", "content": thought + (step.answer or "")}
        if step.calls:
            functions = [{"name": c.name, "arguments": json.dumps(dict(c.arguments), ensure_ascii=False)} for c in step.calls]
            message["tool_calls"] = [{"id": f"call_{n}", "type": "function", "function": f} for n, f in enumerate(functions)]
        return _line({**message, "finish_reason": "tool_calls" if step.calls else "stop"})

    def text(self, tokens: Sequence[int]) -> str:
        """The conversation in readable form."""
        return "\n".join(_shown_line(line) for line in packed.decode(tokens).split("\n") if line)


def conversation(tokens: Sequence[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and tools of a context, for an endpoint. Raises FormatError for tokens of another format."""
    try:
        first, *rest = [json.loads(line) for line in packed.decode(tokens).split("\n") if line]
        messages, tools = list(first["messages"]), list(first["tools"])
    except (ValueError, LookupError, TypeError):
        raise FormatError("this context is not of the format `native`") from None
    for line in rest:
        messages += [{name: line[name] for name in SENT if name in line}] if isinstance(line, dict) else line
    return messages, tools


def turn_from_message(message: Mapping[str, Any], finish: str) -> array[int]:
    """The turn of an endpoint's message."""
    return packed.encode(_line({"role": "assistant", **message, "finish_reason": finish}))


def shown(message: Mapping[str, Any]) -> str:
    """An assistant's message in readable form: its reasoning, its text, its calls."""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    parts = [f"<think>{reasoning}</think>" if reasoning else "", str(message.get("content") or "")]
    parts += [f"<tool_call>{call.get('name')}({call.get('arguments')})</tool_call>" for call in map(_function, _calls(message))]
    return "\n".join(part for part in parts if part)


def _shown_line(line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        return line
    if isinstance(value, list):
        return "\n".join(f"<tool_response>{message.get('content')}</tool_response>" for message in value)
    if isinstance(value, dict) and "messages" in value:
        listed = ", ".join(tool["function"]["name"] for tool in value["tools"])
        messages = [f"{message['role']}: {message['content']}" for message in value["messages"]]
        return "\n".join([*([f"tools: {listed}"] if listed else []), *messages])
    return shown(value) if isinstance(value, dict) else line


def _calls(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    return function if isinstance(function, Mapping) else {}


def _call(call: Mapping[str, Any]) -> Call:
    function = _function(call)
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        return Call(name="", error="a tool call needs a function with a name")
    if isinstance(arguments, str | None):
        arguments = read_object(arguments or "{}")
    if not isinstance(arguments, dict):
        return Call(name=name, error='"arguments" is not a JSON object')
    return Call(name=name, arguments=arguments)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
