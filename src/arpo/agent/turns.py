"""One turn of the model for a conversation that a client keeps, with tools that the client runs.

Knows messages, tokens and calls. A turn that it sampled goes back into the context as the tokens that were sampled;
other turns are written as the chat format writes a trace.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import asyncio
import json
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, cast
from uuid import uuid4

from arpo.assembly.components import Components
from arpo.chat import ChatFormat, ParsedTurn
from arpo.chat.config import build_chat
from arpo.chat.json_text import read_arguments
from arpo.chat.openai_wire import ChatMessage, ChatRequest
from arpo.chat.token_text import check_size
from arpo.core.tree import Call, CallStatus, FinishReason, Role, ToolCallResult, Turn
from arpo.engines import SamplingParams
from arpo.errors import EngineError
from arpo.http.serving import BadRequest
from arpo.models.loading import end_tokens
from arpo.rollout.watching import TurnText
from arpo.sft.traces import steps_for
from arpo.tasks import Task
from arpo.tasks.traces import RecordedStep
from arpo.tools import ToolBase
from arpo.tools.schemas import checked_schema, from_openai

MOST_FORMATS, MOST_TURNS = 32, 4096  # kept: chat formats by their tools, sampled turns by the ids of their calls
MARKS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class TurnDelta:
    """New text of a choice: of its thought, or of its content."""

    index: int
    reasoning: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTurn:
    """A choice: text, or calls. `ids`: one a call."""

    index: int
    reasoning: str
    content: str
    calls: tuple[Call, ...]
    ids: tuple[str, ...]
    finish: str  # "stop", "length" or "tool_calls"
    num_tokens: int


@dataclass(frozen=True, slots=True)
class WrittenTurns:
    num_read: int
    choices: tuple[WrittenTurn, ...]


class TurnWriter:
    """Answers requests turn by turn with the model of `components`."""

    def __init__(self, components: Components) -> None:
        self.components, self.run = components, components.run
        self._formats: OrderedDict[str, tuple[ChatFormat, tuple[ToolBase, ...]]] = OrderedDict()
        self._turns: OrderedDict[str, array[int]] = OrderedDict()  # tokens of sampled turns, by the id of a call
        self._asked = 0

    async def write(self, request: ChatRequest, tell: Callable[[TurnDelta], None]) -> WrittenTurns:
        """`request.n` turns that go on with `request.messages`; `tell` is told of their text. Raises BadRequest,
        ConfigError or FormatError for a request that cannot be answered, EngineError."""
        check_size(_texts(request), self.run.rollout.branch_tokens)
        chat, tools = self._format(request)
        context = self._context(chat, tools, request.messages)
        room = self.run.rollout.branch_tokens - len(context)
        if room < 1:
            limit = self.run.rollout.branch_tokens
            raise BadRequest(f"messages: the conversation has {len(context)} tokens of at most {limit}")
        self._asked += 1
        seed = request.seed if request.seed is not None else f"{self.run.seed}/turn/{self._asked}"
        params = SamplingParams(
            max_tokens=min(room, request.most_tokens or self.run.rollout.turn_tokens),
            temperature=self.run.rollout.temperature if request.temperature is None else request.temperature,
            top_p=request.top_p or 1.0,
            stop=(*chat.stop, *request.stops),
            stop_tokens=chat.stop_tokens,
            head=1,
            tree=request.messages[0].content[:200],
        )
        jobs = []
        for index in range(request.n):
            own = replace(params, seed=Random(f"{seed}/{index}").getrandbits(63))
            jobs.append(self._one(index, chat, context, own, request, bool(tools), tell))
        return WrittenTurns(len(context), tuple(await asyncio.gather(*jobs)))

    async def _one(
        self,
        index: int,
        chat: ChatFormat,
        context: array[int],
        params: SamplingParams,
        request: ChatRequest,
        has_tools: bool,
        tell: Callable[[TurnDelta], None],
    ) -> WrittenTurn:
        tokens, finish, text = array("i"), None, TurnText(chat)
        split = TextSplitter(in_thought=chat.text(context[-16:]).rstrip().endswith("<think>"), stops=request.stops)
        chunks = self.components.agent.engine.sample(context, params)
        async with aclosing(cast(Any, chunks)) as stream:
            async for chunk in stream:
                tokens.extend(chunk.tokens)
                finish = chunk.finish
                spoken = tokens[:-1] if tokens and tokens[-1] in chat.stop_tokens else tokens
                text.grown(spoken, finish is not None)
                thought, content = split.grown(text.shown, finish is not None)
                content = "" if has_tools else content  # it may become a call
                if finish is None and (thought or content):
                    tell(TurnDelta(index, thought, content))
        if finish is None:
            raise EngineError("the engine's answer broke off")
        parsed = chat.parse(tokens) if finish is FinishReason.STOP else ParsedTurn(text="")
        calls = () if any(call.error for call in parsed.calls) else parsed.calls
        ids = tuple(f"call_{uuid4().hex[:24]}" for _ in calls)
        for id_ in ids:
            self._turns[id_] = tokens
        while len(self._turns) > MOST_TURNS:
            self._turns.popitem(last=False)
        reason = "length" if finish is FinishReason.LENGTH else "tool_calls" if calls else "stop"
        return WrittenTurn(
            index=index,
            reasoning=split.reasoning,
            content="" if calls else split.content,
            calls=calls,
            ids=ids,
            finish=reason,
            num_tokens=len(tokens),
        )

    # --- what the turn follows

    def _format(self, request: ChatRequest) -> tuple[ChatFormat, tuple[ToolBase, ...]]:
        offered = [] if request.tool_choice == "none" else request.tools
        key = json.dumps(offered, sort_keys=True)
        if key not in self._formats:
            tools = tuple(_client_tool(schema) for schema in offered)
            names = [tool.name for tool in tools]
            if twice := next((name for name, count in Counter(names).items() if count > 1), None):
                raise BadRequest(f"tools: two tools have the name {twice!r}")
            # results and messages are the client's: their only limit is that of the whole conversation
            config = self.run.chat.model_copy(
                update={"result_tokens": self.run.rollout.branch_tokens, "prompt_tokens": None}
            )
            ends = end_tokens(getattr(self.components.model, "generation_config", None))
            self._formats[key] = build_chat(config, self.components.tokenizer, tools, ends), tools
        self._formats.move_to_end(key)
        while len(self._formats) > MOST_FORMATS:
            self._formats.popitem(last=False)
        return self._formats[key]

    def _context(self, chat: ChatFormat, tools: tuple[ToolBase, ...], messages: Sequence[ChatMessage]) -> array[int]:
        """Tokens of the conversation up to where the model writes."""
        calling = [number for number, message in enumerate(messages) if message.tool_calls]
        begins = calling[0] if calling else len(messages)
        plain, rest = messages[:begins], messages[begins:]
        if not plain or plain[-1].role != "user" or any(message.role == "tool" for message in plain):
            raise BadRequest("messages: a user's message comes last, or right before the calls of an assistant")
        task = Task(id="request", messages=tuple(message.plain() for message in plain), answers=())
        context, earlier = array("i", chat.render(task, tools)), 0
        for message, results, said in _exchanges(rest):
            if len(context) > self.run.rollout.branch_tokens:
                break  # `write` refuses it
            written = self._written(chat, tools, message, results, earlier)
            for number, (tokens, texts) in enumerate(written, 1):
                calls = chat.parse(tokens).calls
                outcomes = [
                    ToolCallResult(tool=call.name, status=CallStatus.OK, text=text)
                    for call, text in zip(calls, texts, strict=True)
                ]
                nothing = array("f")
                turn = Turn(place=(0,), role=Role.ROOT, tokens=tokens, logprobs=nothing, entropies=nothing, calls=calls)
                context.extend(tokens)
                context.extend(chat.observe(turn, outcomes, None, said if number == len(written) else None)[0])
                earlier += len(calls)
        return context

    def _written(
        self,
        chat: ChatFormat,
        tools: tuple[ToolBase, ...],
        message: ChatMessage,
        results: tuple[str, ...],
        earlier: int,
    ) -> list[tuple[array[int], tuple[str, ...]]]:
        """Tokens of an assistant's message, and the results of its calls; several where a turn makes one call."""
        known = self._turns.get(message.tool_calls[0].id) if message.tool_calls else None
        if known is not None and len(chat.parse(known).calls) == len(results):  # a client may have left some out
            return [(known, results)]
        written = []
        for number, step in enumerate(steps_for(chat, tools, [_step(message, results)])):
            written.append((chat.encode_turn(chat.write(step, earlier + number)), step.results))
        return written


def _texts(request: ChatRequest) -> Iterator[str]:
    """Everything of a request that becomes tokens."""
    yield from map(json.dumps, request.tools)
    for message in request.messages:
        yield message.content
        yield from (call.function.arguments for call in message.tool_calls or ())


def _exchanges(messages: Sequence[ChatMessage]) -> Iterator[tuple[ChatMessage, tuple[str, ...], str | None]]:
    """Each message of the assistant with the results of its calls, in their order, and the user's message after
    them."""
    at = 0
    while at < len(messages):
        message, results, said = messages[at], dict[str, str](), None
        if message.role != "assistant":
            raise BadRequest(f"messages: an assistant's message is missing before one of the {message.role}")
        at += 1
        while at < len(messages) and messages[at].role == "tool":
            results[messages[at].tool_call_id] = messages[at].content
            at += 1
        if at < len(messages) and messages[at].role in ("user", "system", "developer"):
            said = messages[at].content
            at += 1
        ids = [call.id for call in message.tool_calls or ()]
        if set(results) != set(ids) or len(set(ids)) != len(ids):
            raise BadRequest(f"messages: the calls {ids} need one result each (got {list(results)})")
        if not ids and said is None:
            raise BadRequest("messages: the last message is the user's or a tool's")
        yield message, tuple(results[id_] for id_ in ids), said


def _step(message: ChatMessage, results: tuple[str, ...]) -> RecordedStep:
    calls = []
    for call in message.tool_calls or ():
        arguments, _, error = read_arguments(call.function.arguments)
        if error:
            raise BadRequest(f"messages: the arguments of {call.function.name}: {error}")
        calls.append(Call(name=call.function.name, arguments=arguments or {}))
    if calls:
        return RecordedStep(calls=tuple(calls), results=results, text=message.content)
    return RecordedStep(answer=message.content)


def _client_tool(schema: dict[str, Any]) -> ToolBase:
    tool = cast(ToolBase, from_openai(partial(_runs_elsewhere), schema))
    tool.schema = checked_schema(tool, "tools")
    return tool


def _runs_elsewhere(**arguments: object) -> str:
    raise AssertionError("the client runs this tool")


class TextSplitter:
    """The thought and the content of a turn, out of its text as it grows: without the marks `<think>` and `<answer>`.
    What is handed out stays: a mark that may be coming is held back."""

    def __init__(self, *, in_thought: bool, stops: Sequence[str] = ()) -> None:
        self.in_thought, self.stops = in_thought, stops
        self.reasoning = self.content = ""

    def grown(self, text: str, finished: bool) -> tuple[str, str]:
        """What is new of both, now that the turn has `text`."""
        before = self.reasoning, self.content
        self.reasoning, self.content = self._split(text, finished)
        return self.reasoning[len(before[0]) :], self.content[len(before[1]) :]

    def _split(self, text: str, finished: bool) -> tuple[str, str]:
        text = text.lstrip()
        thinks = self.in_thought or text.startswith("<think>")
        if not thinks and not finished and "<think>".startswith(text):
            return "", ""
        thought, content = "", text
        if thinks:
            thought, closed, content = text.removeprefix("<think>").partition("</think>")
            if not closed:
                return self._held(thought, finished), ""
        content = content.lstrip()
        if content.startswith("<answer>"):
            content, closed, _ = content.removeprefix("<answer>").partition("</answer>")
            finished = finished or bool(closed)
        elif not finished and "<answer>".startswith(content):
            content = ""
        for stop in self.stops:
            content, found, _ = content.partition(stop)
            finished = finished or bool(found)
        return thought.strip(), self._held(content, finished)

    def _held(self, text: str, finished: bool) -> str:
        text = text.lstrip()
        if not finished:
            coming = (mark[:size] for mark in (*MARKS, *self.stops) for size in range(1, len(mark)))
            text = text[: len(text) - max((len(part) for part in coming if text.endswith(part)), default=0)]
        return text.rstrip()
