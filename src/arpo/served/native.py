"""Messages and native tool calls of chat endpoints (/v1/chat/completions).

Knows messages and calls. Refuses to know tokenizers: the served model has its own. Tokens that no endpoint counted are
estimated.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arpo.chat import ParsedTurn
from arpo.chat.body import read_object
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.token_text import CUT_MARK
from arpo.core.tree import Call, FinishReason, ToolCallResult
from arpo.endpoint.client import LENGTH, Endpoint, Usage
from arpo.errors import FormatError
from arpo.final_answer import boxed, final_answer
from arpo.served import Sampling, ServedTurn
from arpo.tasks import Task
from arpo.tools import Tool
from arpo.tools.schemas import to_openai

SENT = (
    "role",
    "content",
    "tool_calls",
    "refusal",
)  # of an assistant's message; the rest (its reasoning) is not sent back
TOKEN = re.compile(r"[\x00-\x7f]{1,4}|[^\x00-\x7f]")
Message = Mapping[str, Any]


def estimate_tokens(text: str) -> int:
    """Tokens of `text` for a model whose tokenizer is not here: four characters of English or one of Chinese each."""
    return sum(1 for _ in TOKEN.finditer(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    num_tokens: int


class NativeDialogue:
    """For one set of tools. `result_tokens` and `prompt_tokens` are estimates (`estimate_tokens`)."""

    def __init__(
        self,
        *,
        system: str = "",
        result_tokens: int = 512,
        prompt_tokens: int | None = None,
        require_boxed: bool = False,
        no_calls_left: str = NO_CALLS_LEFT,
    ) -> None:
        self.system, self.result_tokens, self.prompt_tokens = system, result_tokens, prompt_tokens
        self.require_boxed, self.no_calls_left = require_boxed, no_calls_left

    def begin(self, task: Task, tools: Sequence[Tool]) -> Messages:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages, schemas = (*system, *map(dict, task.messages)), tuple(to_openai(tool) for tool in tools)
        num_tokens = estimate_tokens(_json([messages, schemas]))
        if self.prompt_tokens is not None and num_tokens > self.prompt_tokens:
            what = f"task {task.id}: the prompt has about {num_tokens} tokens"
            raise FormatError(f"{what}, more than chat.prompt_tokens = {self.prompt_tokens}")
        return Messages(messages=messages, tools=schemas, num_tokens=num_tokens)

    async def ask(self, endpoint: Endpoint, context: Messages, sampling: Sampling) -> ServedTurn[Messages]:
        reply = await endpoint.chat(context.messages, tools=list(context.tools) or None, **sampling.fields())
        usage = reply.usage
        if not usage.prompt_tokens:
            usage = Usage(prompt_tokens=context.num_tokens, completion_tokens=estimate_tokens(shown(reply.message)))
        message = {name: reply.message[name] for name in SENT if name in reply.message}
        return ServedTurn(
            parsed=self.parse(reply.message, reply.finish),
            finish=FinishReason.LENGTH if reply.finish == LENGTH else FinishReason.STOP,
            usage=usage,
            context=Messages(
                messages=(*context.messages, {"role": "assistant", **message}),
                tools=context.tools,
                num_tokens=usage.prompt_tokens + usage.completion_tokens,
            ),
        )

    def parse(self, message: Message, finish: str) -> ParsedTurn:
        """The calls or the answer of an assistant's message: what stands in answer marks or a box, else all of its
        text."""
        if calls := tuple(map(_read_call, _calls(message))):
            return ParsedTurn(text=shown(message), calls=calls, well_formed=not any(call.error for call in calls))
        content = str(message.get("content") or "").rpartition("</think>")[2]
        answer = final_answer(content)
        formed = answer is not None and finish == "stop" and (boxed(content) is not None or not self.require_boxed)
        return ParsedTurn(text=shown(message), answer=answer, well_formed=formed)

    def observe(
        self, turn: ServedTurn[Messages], results: Sequence[ToolCallResult], calls_left: int | None
    ) -> tuple[Messages, str, tuple[ToolCallResult, ...]]:
        """A message for each call, capped; the last one says so where no calls are left."""
        context = turn.context
        messages, seen = [], []
        for number, (call, result) in enumerate(zip(_calls(context.messages[-1]), results, strict=True)):
            text, cut = self._capped(result.text)
            last = number == len(results) - 1 and calls_left is not None and calls_left <= 0
            word = f"\n{self.no_calls_left}" if last and self.no_calls_left else ""
            messages.append({"role": "tool", "tool_call_id": str(call.get("id") or ""), "content": text + word})
            seen.append(replace(result, cut=result.cut or cut))
        text = "\n".join(map(_shown_message, messages))
        num_tokens = context.num_tokens + estimate_tokens(_json(messages))
        return replace(context, messages=(*context.messages, *messages), num_tokens=num_tokens), text, tuple(seen)

    def text(self, context: Messages) -> str:
        tools = ", ".join(tool["function"]["name"] for tool in context.tools)
        return "\n".join([*([f"tools: {tools}"] if tools else []), *map(_shown_message, context.messages)])

    def _capped(self, text: str) -> tuple[str, bool]:
        pieces = [match.group() for match, _ in zip(TOKEN.finditer(text), range(self.result_tokens + 1), strict=False)]
        if len(pieces) <= self.result_tokens:
            return text, False
        return "".join(pieces[: max(0, self.result_tokens - estimate_tokens(CUT_MARK))]) + CUT_MARK, True


def shown(message: Message) -> str:
    """An assistant's message as people read it: its reasoning, its text, its calls."""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    parts = [f"<think>{reasoning}</think>" if reasoning else "", str(message.get("content") or "")]
    parts += [
        f"<tool_call>{call.get('name')}({call.get('arguments')})</tool_call>"
        for call in map(_function, _calls(message))
    ]
    return "\n".join(part for part in parts if part)


def _shown_message(message: Message) -> str:
    if message["role"] == "tool":
        return f"<tool_response>{message['content']}</tool_response>"
    return shown(message) if message["role"] == "assistant" else f"{message['role']}: {message['content']}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _calls(message: Message) -> list[Message]:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def _function(call: Message) -> Message:
    function = call.get("function")
    return function if isinstance(function, Mapping) else {}


def _read_call(call: Message) -> Call:
    function = _function(call)
    name, written = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        return Call(name="", error="a tool call needs a function with a name")
    arguments = written if isinstance(written, dict) else None
    if arguments is None and isinstance(written, str | None):
        arguments = read_object(written or "{}")
    if arguments is None:
        return Call(name=name, error='"arguments" is not a JSON object')
    return Call(name=name, arguments=arguments)
