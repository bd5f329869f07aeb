"""Messages and native tool calls of chat endpoints (/v1/chat/completions).

Knows messages and calls. Refuses to know tokenizers: the served model has its own. Tokens that no endpoint counted are
estimated.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from types import MappingProxyType
from typing import Any

from arpo.chat import ParsedTurn
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.json_text import QUOTED, identifier, read_arguments
from arpo.chat.syntaxes.known import foreign_opening
from arpo.chat.token_text import CUT_MARK
from arpo.core.tree import Call, FinishReason, ToolCallResult
from arpo.endpoint.client import LENGTH, Endpoint, Usage, text_of
from arpo.errors import ConfigError, FormatError
from arpo.final_answer import boxed, final_answer
from arpo.served import Sampling, ServedTurn
from arpo.tasks import Task
from arpo.tools import Tool
from arpo.tools.schemas import to_openai

REASONING = ("reasoning_content", "reasoning", "reasoning_details")
SENT = (
    "role",
    "content",
    "refusal",
    *REASONING,
)  # keys of an assistant's message that go back, unless `omit` names them
FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]")  # in the name of a function, which has 1 to 64 characters
LONGEST = 64
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
    names: Mapping[str, str] = field(default_factory=dict)
    """Of the tools by the names that the endpoint knows them by."""


class NativeDialogue:
    """For one set of tools. `result_tokens` and `prompt_tokens` are estimates (`estimate_tokens`)."""

    def __init__(
        self,
        *,
        system: str = "",
        result_tokens: int = 512,
        prompt_tokens: int | None = None,
        require_boxed: bool = False,
    ) -> None:
        self.system, self.result_tokens, self.prompt_tokens = system, result_tokens, prompt_tokens
        self.require_boxed = require_boxed

    def begin(self, task: Task, tools: Sequence[Tool]) -> Messages:
        system = [{"role": "system", "content": self.system}] if self.system else []
        names = endpoint_names([tool.name for tool in tools])
        schemas = tuple(to_openai(tool, name) for name, tool in zip(names, tools, strict=True))
        messages = (*system, *map(dict, task.messages))
        num_tokens = estimate_tokens(_json([messages, schemas]))
        if self.prompt_tokens is not None and num_tokens > self.prompt_tokens:
            what = f"task {task.id}: the prompt has about {num_tokens} tokens"
            raise FormatError(f"{what}, more than chat.prompt_tokens = {self.prompt_tokens}")
        return Messages(messages=messages, tools=schemas, num_tokens=num_tokens, names=names)

    async def ask(self, endpoint: Endpoint, context: Messages, sampling: Sampling) -> ServedTurn[Messages]:
        reply = await endpoint.chat(context.messages, tools=list(context.tools) or None, **sampling.fields())
        usage = reply.usage
        if not usage.prompt_tokens:
            usage = Usage(prompt_tokens=context.num_tokens, completion_tokens=estimate_tokens(shown(reply.message)))
        refused = {name for name, value in endpoint.config.options.items() if value is None}
        message = {key: reply.message[key] for key in SENT if reply.message.get(key) is not None and key not in refused}
        calls = {"tool_calls": _sendable(calls)} if (calls := _calls(reply.message)) else {}
        content = {"content": None} if calls and "content" not in message else {}
        return ServedTurn(
            parsed=self.parse(reply.message, reply.finish, context.names),
            finish=FinishReason.LENGTH if reply.finish == LENGTH else FinishReason.STOP,
            usage=usage,
            context=Messages(
                messages=(*context.messages, {"role": "assistant", **content, **message, **calls}),
                tools=context.tools,
                names=context.names,
                num_tokens=usage.prompt_tokens + usage.completion_tokens,
            ),
        )

    def parse(self, message: Message, finish: str, names: Mapping[str, str] = MappingProxyType({})) -> ParsedTurn:
        """The calls or the answer of an assistant's message: what stands in answer marks or a box, else all of its
        text."""
        content = text_of(message.get("content")).rpartition("</think>")[2]
        if calls := tuple(_read_call(call, names) for call in _calls(message)):
            formed = not any(call.error for call in calls)
            return ParsedTurn(text=shown(message), calls=calls, well_formed=formed, content=content.strip())
        answer = final_answer(content)
        formed = answer is not None and finish == "stop" and (boxed(content) is not None or not self.require_boxed)
        formed = formed and not foreign_opening(content)  # a call that the endpoint did not recognise
        return ParsedTurn(text=shown(message), answer=answer, well_formed=formed, content=content.strip())

    def observe(
        self,
        turn: ServedTurn[Messages],
        results: Sequence[ToolCallResult],
        calls_left: int | None,
        message: str | None = None,
    ) -> tuple[Messages, str, tuple[ToolCallResult, ...]]:
        """A message for each call, capped; the last one says so where no calls are left. Then the user's `message`."""
        context = turn.context
        messages, seen = [], []
        for number, (call, result) in enumerate(zip(_calls(context.messages[-1]), results, strict=True)):
            text, cut = self._capped(result.text)
            last = number == len(results) - 1 and calls_left is not None and calls_left <= 0
            word = f"\n{NO_CALLS_LEFT}" if last else ""
            messages.append({"role": "tool", "tool_call_id": str(call.get("id") or ""), "content": text + word})
            seen.append(replace(result, cut=result.cut or cut))
        if message is not None:
            messages.append({"role": "user", "content": self._capped(message)[0]})
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
    reasoning = next((message[key] for key in REASONING if isinstance(message.get(key), str) and message[key]), "")
    parts = [f"<think>{reasoning}</think>" if reasoning else "", text_of(message.get("content"))]
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


def _read_call(call: Message, names: Mapping[str, str]) -> Call:
    function = _function(call)
    name, written = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        return Call(name="", error="a tool call needs a function with a name")
    name = names.get(name, name)
    arguments, mended, error = read_arguments(written)
    error = error and f"{error} ({written!s:.200})"  # its message goes back without them
    mended = "" if mended == QUOTED else mended  # an endpoint writes arguments as text
    return Call(name=name, arguments=arguments, error=error, id=identifier(call.get("id")), mended=mended)


def _arguments(written: object) -> dict[str, Any] | None:
    arguments, _, error = read_arguments(written)
    return None if error else arguments


def _sendable(calls: Sequence[Message]) -> list[dict[str, Any]]:
    """`calls` as every endpoint takes them back: each with an id of its own, a valid name, and arguments that are an
    object. What was wrong stands in the results."""
    sent: list[dict[str, Any]] = []
    named = {given for call in calls if isinstance(given := call.get("id"), str)}
    free = (name for number in count() if (name := f"call_{number}") not in named)
    known = set[str]()
    for call in calls:
        function, given = _function(call), call.get("id")
        id_ = given if isinstance(given, str) and given and given not in known else next(free)
        known.add(id_)
        name = FORBIDDEN.sub("_", str(function.get("name") or "invalid"))[:LONGEST]
        arguments = _arguments(function.get("arguments"))
        written = function.get("arguments") if arguments and isinstance(function.get("arguments"), str) else None
        sent.append(
            {
                "id": id_,
                "type": "function",
                "function": {"name": name, "arguments": written or _json(arguments or {})},
            }
        )
    return sent


def endpoint_names(names: Sequence[str]) -> dict[str, str]:
    """The name of each tool by one that endpoints allow: letters, digits, - and _, at most 64. Names that are allowed
    stay. Raises ConfigError for two tools of one name."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError("two tools have one name", where="tools", value=twice, hint="set `name` on one of them")
    allowed = {name: name for name in names if name and len(name) <= LONGEST and not FORBIDDEN.search(name)}
    taken = set(allowed)
    for name in names:
        if name in allowed.values():
            continue
        plain = FORBIDDEN.sub("_", name)[:LONGEST] or "tool"
        if plain in taken or len(name) > LONGEST:
            plain = f"{plain[: LONGEST - 9]}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        taken.add(plain)
        allowed[plain] = name
    return {sent: name for name in names for sent, real in allowed.items() if real == name}
